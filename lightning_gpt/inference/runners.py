"""The runner for a network."""

from lightning_gpt.inference.kernels.library import load_library
from lightning_gpt.inference.native_runner import NativeRunner, why_not
from lightning_gpt.inference.runner import Runner, TorchRunner
from lightning_gpt.nn import GPT


def make_runner(net: GPT) -> Runner:
    """What computes the network's steps fastest here. It reads the weights as they are now: in C++ on a processor that
    it can be compiled for, where it knows the network; else the network itself.

    Args:
        net: in evaluation mode.
    """
    return NativeRunner(net) if why_not(net) is None and load_library() is not None else TorchRunner(net)
