"""Bytes and operations of steps of generation, counted from network and configuration: what speeds are compared with.

Legend: B rows, T tokens of a prompt, E experts, k experts of a token.
"""

import torch

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.caches import CacheType
from lightning_gpt.nn.flops import forward_flops_per_token, kv_cache_bytes

TABLES = ("token_embedding", "position_embedding", "rotary")
"""Modules of which a token reads one row."""


def weight_bytes(net: GPT, rows: int = 1) -> int:
    """Bytes of weights that a step of one new token for each of `rows` rows must read: all matrices once, of tables of
    embeddings nothing, of experts those that are chosen (E (1 - (1 - k / E)^B) of them, if each is as likely).

    Args:
        net: also a quantized one.
        rows: B.
    """
    moe, tied, seen, total = net.config.moe, net.config.tie_embeddings, set(), 0.0
    share = 1.0 if moe is None else 1 - (1 - moe.top_k / moe.experts) ** rows
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        looked_up = name.partition(".")[0] in TABLES and not (tied and name.startswith("token_embedding"))
        if looked_up or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        total += tensor.nbytes * (share if ".experts." in name else 1.0)
    return round(total)


def decode_bytes(net: GPT, rows: int, context: int, cache: CacheType) -> int:
    """Bytes that a step must read for one new token in each of `rows` rows of `context` tokens, itself included."""
    return weight_bytes(net, rows) + rows * kv_cache_bytes(net.config, context, cache)


def decode_flops(config: GPTConfig, rows: int, context: int) -> float:
    """Operations of that step."""
    return rows * forward_flops_per_token(config, context)


def prompt_flops(config: GPTConfig, rows: int, tokens: int) -> float:
    """Operations of reading `rows` prompts of T tokens: the head is applied to the last of each."""
    head = 2.0 * config.n_embd * config.padded_vocab_size
    body = forward_flops_per_token(config, tokens, causal=True) - head
    return rows * (tokens * body + head)


def weight_type(net: GPT) -> torch.dtype:
    """The type of most of the weights' bytes."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in net.state_dict().values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    return max(sizes, key=sizes.__getitem__)
