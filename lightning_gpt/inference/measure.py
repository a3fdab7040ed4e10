"""How fast a runner generates: rows that begin together, greedy, every step timed.

Scheduling and sampling are not in it: it is what the network takes. Legend: B rows, V vocabulary.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_gpt.inference.peak_memory import PeakMemory
from lightning_gpt.inference.runner import Runner, StepInput
from lightning_gpt.nn.caches import CacheType
from lightning_gpt.nn.paged_cache import PagedKVCache, Span

STEP_TOKENS = 2048
"""Tokens of prompts that one step reads."""
BLOCK_SIZE = 16


@dataclass
class Timing:
    """What was measured of one size of work."""

    first: list[float] = field(default_factory=list)
    """Seconds from the beginning to each row's first token."""
    steps: list[float] = field(default_factory=list)
    """Seconds of each step after all rows had their first token: what lies between two tokens of a row."""
    whole: list[float] = field(default_factory=list)
    """Seconds from the beginning to the last token, for each repetition."""
    peak_bytes: int = 0
    """The most memory: of a GPU what was allocated, else what the process held."""
    cache_bytes: int = 0
    tokens: list[list[int]] = field(default_factory=list)
    """That each row was continued with."""

    def __add__(self, other: "Timing") -> "Timing":
        """Both repetitions together."""
        lists = (self.first + other.first, self.steps + other.steps, self.whole + other.whole)
        return Timing(*lists, max(self.peak_bytes, other.peak_bytes), other.cache_bytes, other.tokens)


def random_prompts(vocab_size: int, rows: int, tokens: int, seed: int = 0) -> list[list[int]]:
    """Token ids drawn evenly."""
    return torch.randint(vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(seed)).tolist()


def time_generation(
    runner: Runner, prompts: list[list[int]], new: int, cache: CacheType | None = None, tokens_a_step: int = STEP_TOKENS
) -> Timing:
    """Continues prompts by `new` tokens each, the likeliest.

    Args:
        runner: what computes.
        prompts: of equal length; read in steps of whole prompts of at most `tokens_a_step` tokens, one at least.
        new: at least 1.
        cache: type of keys and values; None = the runner's choice.
        tokens_a_step: see prompts.
    """
    rows, length = len(prompts), len(prompts[0])
    device = runner.device
    each = -(-(length + new - 1) // BLOCK_SIZE)
    blocks = [range(row * each, (row + 1) * each) for row in range(rows)]
    with PeakMemory(device) as peak, torch.inference_mode():
        pool = runner.make_cache(rows * each, BLOCK_SIZE, cache)
        timing = Timing(cache_bytes=pool.nbytes)
        begin = before = time.perf_counter()
        latest: list[int] = []
        for group in _groups(rows, max(1, tokens_a_step // length)):
            latest += _step(runner, pool, [prompts[row] for row in group], 0, [blocks[row] for row in group])
            before = time.perf_counter()
            timing.first += [before - begin] * len(group)
        timing.tokens = [[token] for token in latest]
        for past in range(length, length + new - 1):
            latest = _step(runner, pool, [[token] for token in latest], past, blocks)
            now = time.perf_counter()
            timing.steps.append(now - before)
            before = now
            for made, token in zip(timing.tokens, latest):
                made.append(token)
        timing.whole.append(before - begin)
    timing.peak_bytes = peak.bytes
    return timing


def _groups(rows: int, size: int) -> Iterator[range]:
    for start in range(0, rows, size):
        yield range(start, min(start + size, rows))


def _step(runner: Runner, pool: PagedKVCache, new: list[list[int]], past: int, blocks: list[range]) -> list[int]:
    """Reads equally many tokens of each row behind `past` of them; the likeliest to follow."""
    count = len(new[0])
    spans = [Span(row * count, count, past, own) for row, own in enumerate(blocks)]
    wanted = range(count - 1, count * len(new), count)
    logits_BV: Tensor = runner.forward(StepInput([token for row in new for token in row], spans, wanted), pool)
    return logits_BV.argmax(-1).tolist()
