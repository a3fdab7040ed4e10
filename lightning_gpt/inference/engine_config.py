"""The engine's settings and figures."""

import os
from dataclasses import dataclass

import torch

from lightning_gpt.inference.runner import Runner
from lightning_gpt.nn.caches import CacheType


@dataclass(frozen=True)
class EngineConfig:
    """How much an engine does at once.

    Raises:
        ValueError: a value outside its range.
    """

    max_running: int = 64
    """Requests that are computed side by side."""
    token_budget: int = 1024
    """Tokens that a step reads at most. Less = running texts wait less for new prompts; more = prompts are read
    faster."""
    cache_blocks: int | None = None
    """Blocks of the key/value cache; null = as cache_bytes says."""
    cache_bytes: int | None = None
    """Memory for keys and values; null = for max_running texts of full length, but not more than half of the free
    memory of a GPU; on a CPU than 1 GiB or what one such text takes, and then a quarter of the machine's memory."""
    block_size: int = 16
    """Tokens in a block. Only full blocks are shared by requests that begin alike."""
    cache_dtype: CacheType | None = None
    """Of keys and values, a type of torch, int8 or int4; null = what the runner reads fastest."""
    max_waiting: int | None = None
    """Requests that may wait for their start; more are refused. null = any number."""
    share_prefixes: bool = True
    """Whether requests that begin alike share what was computed of that."""

    def __post_init__(self) -> None:
        for name in ("max_running", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.token_budget < self.max_running:
            raise ValueError(
                f"token_budget={self.token_budget} must be at least max_running={self.max_running}: a token for each"
            )
        for name in ("cache_blocks", "cache_bytes", "max_waiting"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or null")
        if self.cache_blocks is not None and self.cache_bytes is not None:
            raise ValueError("cache_blocks and cache_bytes exclude each other: give one of them")

    def blocks(self, runner: Runner) -> int:
        """Blocks of the cache for this runner.

        Raises:
            ValueError: cache_bytes are fewer than a block takes.
        """
        if self.cache_blocks is not None:
            return self.cache_blocks
        one = runner.make_cache(1, self.block_size, self.cache_dtype).nbytes
        if self.cache_bytes is not None:
            if self.cache_bytes < one:
                raise ValueError(f"cache_bytes={self.cache_bytes:,} hold no block of {one:,} bytes: give more")
            return self.cache_bytes // one
        longest = -(-runner.config.block_size // self.block_size)
        if runner.device.type == "cuda":
            usual = most = torch.cuda.mem_get_info(runner.device)[0] // 2
        else:
            usual, most = 1 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
        return max(min(self.max_running * longest, usual // one), min(longest, most // one), 1)


@dataclass(frozen=True)
class EngineStats:
    """What an engine has done and does; counts run from its beginning."""

    running: int
    """Requests being computed."""
    waiting: int
    """Requests that wait for their start, or were set back for want of memory."""
    blocks: int
    """Of the cache."""
    blocks_held: int
    """Blocks that running requests hold."""
    steps: int
    prompt_tokens: int
    """Of all requests that were taken."""
    shared_tokens: int
    """Tokens that were not read, for another request had read the same."""
    generated_tokens: int
    preemptions: int
    """Times that a request was set back for want of memory."""
    finished: dict[str, int]
    """Requests by how they ended."""

    @property
    def cache_use(self) -> float:
        """Share of the blocks that are held."""
        return self.blocks_held / self.blocks
