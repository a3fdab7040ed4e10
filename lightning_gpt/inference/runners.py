"""The runner for a network."""

import torch

from lightning_gpt.inference.kernels.library import load_library
from lightning_gpt.inference.native_runner import NativeRunner, why_not
from lightning_gpt.inference.runner import Runner, TorchRunner
from lightning_gpt.nn import GPT


def make_runner(net: GPT) -> Runner:
    """What computes the network's steps fastest here. It reads the weights as they are now: in C++ on a processor that
    it can be compiled for, where it knows the network; else the network itself. Under autocast to bfloat16 the C++ too
    multiplies in that type.

    Args:
        net: in evaluation mode.
    """
    if why_not(net) is not None or load_library() is None:
        return TorchRunner(net)
    cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return NativeRunner(net, "bfloat16" if cast else None)
