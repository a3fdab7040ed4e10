"""The runner for a network."""

from lightning_gpt.inference.runner import Runner, TorchRunner
from lightning_gpt.nn import GPT


def make_runner(net: GPT) -> Runner:
    """What computes the network's steps fastest here. It reads the weights as they are now.

    Args:
        net: in evaluation mode.
    """
    return TorchRunner(net)
