"""How a network and its states are spread over devices, applied from outside: the networks know nothing of it."""

from lightning_gpt.parallel.strategies import FullySharded, TensorParallel

__all__ = ["FullySharded", "TensorParallel"]
