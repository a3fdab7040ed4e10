"""What generating costs with and without a key/value cache, over the number of tokens."""

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from lightning_gpt.inference.one_by_one import decode, prefill
from lightning_gpt.nn import GPT, GPTConfig, KVCache

FIT = 3
"""The exponent is that of the last so many lengths."""


@torch.inference_mode()
def measure_cache_use(cached: bool, shape: dict[str, Any], lengths: list[int], seed: int) -> Iterator[dict[str, float]]:
    """Rows over the number of tokens generated: time/seconds from the beginning, time/token_ms of the last one, and in
    time/exponent the p of seconds ~ tokens^p between the lengths, over the last three of them.

    Args:
        cached: keep keys and values; else every token reads the whole text again.
        shape: fields of GPTConfig; the weights are random.
        lengths: rising numbers of tokens.
        seed: of weights and first token.
    """
    torch.manual_seed(seed)
    config = GPTConfig(**shape)
    if lengths != sorted(set(lengths)) or lengths[0] < 2 or lengths[-1] > config.block_size:
        raise ValueError(f"lengths={lengths} must rise, from at least 2 to at most block_size={config.block_size}")
    net = GPT(config).eval()
    text = [int(torch.randint(config.vocab_size, ()))]
    _next(net, text * 8, None)  # what the first pass takes longer is none of the text's
    cache = KVCache(config, 1, lengths[-1]) if cached else None
    begin = before = time.perf_counter()
    seconds, rows = [], []
    while len(text) <= lengths[-1]:
        text.append(_next(net, text, cache))
        now = time.perf_counter()
        if len(text) - 1 in lengths:
            seconds.append(now - begin)
            rows.append({"step": len(text) - 1, "time/seconds": now - begin, "time/token_ms": 1e3 * (now - before)})
        before = now
    few = min(FIT, len(lengths))
    exponent = float(np.polyfit(np.log(lengths[-few:]), np.log(seconds[-few:]), 1)[0]) if few > 1 else math.nan
    yield from ({**row, "time/exponent": exponent} for row in rows)


def _next(net: GPT, text: list[int], cache: KVCache | None) -> int:
    """The likeliest token to follow."""
    if cache is None:
        return int(net.logits(net.hidden(torch.tensor([text]))[:, -1]).argmax())
    if not cache.length:
        return int(prefill(net, [text], cache).argmax())
    return int(decode(net, torch.tensor(text[-1:]), cache).argmax())
