"""What it costs to keep keys and values in fewer bits. Legend: B rows, K key/value heads, T tokens, D head width."""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from lightning_gpt.experiments.measures.perplexity import held_out_windows, likeliest, perplexity
from lightning_gpt.hub import open_model
from lightning_gpt.inference.measure import random_prompts, time_generation
from lightning_gpt.inference.runners import make_runner
from lightning_gpt.nn import GPT, KVCache
from lightning_gpt.nn.caches import cache_type, slot_cache
from lightning_gpt.nn.flops import kv_cache_bytes_per_token
from lightning_gpt.nn.quantized_cache import GROUP, CacheCode

BY_CHANNEL = "int4-keys-by-channel"


class ChannelKeysCache(KVCache):
    """A trial of KIVI's layout (Liu et al., 2024): keys share a scale along 32 tokens of one channel, values along the
    channels of one token. Numbers are rounded and kept as float32; it can only read whole texts at once."""

    def __init__(self, net: GPT, batch: int) -> None:
        super().__init__(net.config, batch)
        self.code = CacheCode("int4", net.config.head_size)

    def update(self, layer: int, key_BHTD: Tensor, value_BHTD: Tensor, positions: Tensor | slice):
        """As KVCache."""
        T = key_BHTD.shape[2]
        columns = torch.nn.functional.pad(key_BHTD, (0, 0, 0, -T % GROUP)).transpose(-1, -2)
        by_token = CacheCode("int4", columns.shape[-1])
        key = by_token.dequantize(*by_token.quantize(columns)).transpose(-1, -2)[:, :, :T]
        return super().update(layer, key, self.code.dequantize(*self.code.quantize(value_BHTD)), positions)


def measure_cache(
    model: str, cache: str, text: str, tokens: int, context: int, prompt: int, new: int, seed: int
) -> dict[str, float]:
    """Bytes of a cached token, perplexity of a text read through the cache, how far attention's outputs and the
    likeliest tokens are from those without one, and tokens/s behind a long prompt.

    Args:
        model: checkpoint, model directory or hub name.
        cache: float32, bfloat16, float16, int8, int4, or int4-keys-by-channel, which is only tried for its quality.
        text: as held_out_windows.
        tokens: that are foretold.
        context: of each window.
        prompt: tokens before the timed ones.
        new: timed tokens.
        seed: of the choice of windows, and of the prompt.
    """
    net, tokenizer = open_model(model, torch.float32)
    windows = held_out_windows(text, tokenizer, tokens, context, seed)
    if cache == BY_CHANNEL:
        make, kind = partial(ChannelKeysCache, net), "int4"
    else:
        kind = cache_type(cache)
        make = partial(slot_cache, net.config, size=context, kind=kind)
    timing = time_generation(make_runner(net), random_prompts(net.config.vocab_size, 1, prompt, seed), new, kind)
    exact = likeliest(net, windows)
    return {
        "val/perplexity": perplexity(net, windows, make),
        "attention/relative_error": attention_error(net, windows[:1, :-1], make),
        "greedy/agreement": float((likeliest(net, windows, make) == exact).double().mean()),
        "cache/bytes_per_token": float(kv_cache_bytes_per_token(net.config, kind)),
        "decode/tokens_per_second": 1 / median(timing.steps),
    }


@torch.inference_mode()
def attention_error(net: GPT, ids_BT: Tensor, make_cache: Callable[[int], KVCache]) -> float:
    """||y' - y|| / ||y|| of attention's outputs with and without the cache, mean over the layers; what a layer is given
    holds the errors of those before it."""
    outputs: list[list[Tensor]] = [[], []]
    for found, cache in zip(outputs, (None, make_cache(len(ids_BT)))):
        hooks = [
            block.attention.register_forward_hook(lambda _, inputs, output, found=found: found.append(output[0]))
            for block in net.blocks
        ]
        try:
            net.hidden(ids_BT, cache=cache)
        finally:
            for hook in hooks:
                hook.remove()
    return float(torch.stack([(near - exact).norm() / exact.norm() for exact, near in zip(*outputs)]).mean())
