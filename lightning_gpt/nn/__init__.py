"""Networks in pure PyTorch."""

from lightning_gpt.nn.cache import KVCache
from lightning_gpt.nn.config import GPTConfig
from lightning_gpt.nn.gpt import GPT

__all__ = ["GPT", "GPTConfig", "KVCache"]
