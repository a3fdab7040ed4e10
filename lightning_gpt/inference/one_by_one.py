"""One text at a time through a static cache: the readable twin of the engine. Legend: B rows, T tokens, C width, V
vocabulary.

`prefill` and `decode` are the two passes through the network.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gpt.inference.batch_sampler import BatchSampler
from lightning_gpt.inference.request import Request
from lightning_gpt.nn import GPT, KVCache


@torch.inference_mode()
def prefill(
    net: GPT, windows: Sequence[Sequence[int]], cache: KVCache, embeds: Sequence[Tensor | None] | None = None
) -> Tensor:
    """Reads whole windows into an empty cache.

    Args:
        net: the network.
        windows: token ids per row, right-padded here: what is written behind a row's end stays masked until real
            tokens take its place.
        cache: with a row for each.
        embeds: per row (T, C), read in place of the token embeddings; None = the ids'.

    Returns:
        (B, V) logits after each row's last token.
    """
    device = net.token_embedding.weight.device
    lengths = [len(window) for window in windows]
    longest = max(lengths)
    input_ids_BT = torch.tensor([[*window, *[0] * (longest - len(window))] for window in windows], device=device)
    ends = torch.tensor(lengths, device=device)
    cache.ends = ends if min(lengths) < longest else None
    embedded_BTC = None
    if embeds is not None and any(row is not None for row in embeds):
        embedded_BTC = net.token_embedding(input_ids_BT)
        for row, own in enumerate(embeds):
            if own is not None:
                embedded_BTC[row, : len(own)] = own
    hidden_BTC = net.hidden(input_ids_BT, cache=cache, embedded_BTC=embedded_BTC)
    cache.ends = None
    return net.logits(hidden_BTC[torch.arange(len(windows), device=device), ends - 1])


@torch.inference_mode()
def decode(net: GPT, tokens_B: Tensor, cache: KVCache, positions_B: Tensor | None = None) -> Tensor:
    """Reads one more token per row.

    Args:
        net: the network.
        tokens_B: int64.
        cache: of all tokens before.
        positions_B: int64, each row's position; None = all rows continue at cache.length, which needs no mask.

    Returns:
        (B, V) logits.
    """
    positions = None if positions_B is None else positions_B[:, None]
    return net.logits(net.hidden(tokens_B[:, None], positions, cache)[:, -1])


def cache_for(net: GPT, rows: int, size: int) -> KVCache:
    """An empty cache of the network's type; on CPU at least float32: products of one bfloat16 query with many keys are
    two to four times slower there."""
    weight = net.token_embedding.weight
    dtype = torch.promote_types(weight.dtype, torch.float32) if weight.device.type == "cpu" else weight.dtype
    return KVCache(net.config, rows, size, dtype, weight.device)


@torch.inference_mode()
def one_by_one(net: GPT, request: Request, vocab_size: int | None = None) -> list[int]:
    """The new tokens of a request, computed alone; stop strings, min_new_tokens and log-probabilities apart, which
    follow from them.

    Args:
        net: in evaluation mode.
        request: what to continue.
        vocab_size: ids from here on are never drawn.
    """
    size, device = net.config.block_size, net.token_embedding.weight.device
    sampler = BatchSampler(min(vocab_size or net.config.vocab_size, net.config.vocab_size), device)
    sampler.add(0, request.sampling, request.prompt, request.seed, request.banned_ids)
    window = list(request.prompt if len(request.prompt) <= size else request.prompt[-max(size // 2, 1) :])
    cache = cache_for(net, 1, size)
    made: list[int] = []
    logits_1V = prefill(net, [window], cache, [request.embeds])
    while len(made) < request.max_new_tokens:
        token = sampler.draw(logits_1V[:, : sampler.vocab_size].float(), [0])[0].token
        made.append(token)
        window.append(token)
        if token in request.end_ids or len(made) == request.max_new_tokens:
            break
        if len(window) > size:
            window = window[-max(size // 2, 1) :]
            cache = cache_for(net, 1, size)
            logits_1V = prefill(net, [window], cache)
        else:
            logits_1V = decode(net, torch.tensor([token], device=device), cache)
    return made
