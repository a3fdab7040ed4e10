"""How well a network foretells a text, read whole or through a cache. Legend: B rows, T tokens, V vocabulary."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gpt.data.corpus_meta import META_FILE, CorpusMeta
from lightning_gpt.data.shards import TokenShards
from lightning_gpt.data.sources import open_source
from lightning_gpt.nn import GPT, KVCache
from lightning_gpt.text.tokenizer import Tokenizer

BATCH_TOKENS = 2048
READ = 8
"""Of a long text so many times the tokens that are needed are read; windows are drawn from these."""


def held_out_windows(source: str, tokenizer: Tokenizer, tokens: int, context: int, seed: int) -> Tensor:
    """Windows of a text, drawn by the seed: int64 (tokens // context, context + 1); of two that stand side by side one
    ends with the token that the other begins with. Differences over seeds are then differences over texts.

    Args:
        source: a directory that `lightning-gpt prepare` wrote (its validation split), or what `prepare` reads: a named
            corpus, a file, a folder.
        tokenizer: the model's.
        tokens: how many are foretold, out of the first READ times as many.
        context: of a window.
        seed: of the draw.

    Raises:
        ValueError: a text that is too short, or prepared with another tokenizer.
    """
    ids, wanted = _ids(source, tokenizer, READ * tokens + 1), tokens // context
    windows = (len(ids) - 1) // context
    if wanted < 1 or windows < wanted:
        raise ValueError(
            f"text={source} has {len(ids):,} tokens: tokens={tokens:,} in windows of context={context} cannot be drawn"
        )
    chosen = torch.randperm(windows, generator=torch.Generator().manual_seed(seed))[:wanted].sort().values
    return torch.stack([ids[start : start + context + 1] for start in (chosen * context).tolist()])


def _ids(source: str, tokenizer: Tokenizer, most: int) -> Tensor:
    if (Path(source) / META_FILE).exists():
        meta = CorpusMeta.load(Path(source))
        if meta.tokenizer.fingerprint != tokenizer.fingerprint:
            raise ValueError(f"text={source} was prepared with another tokenizer than the model's: give its text")
        shards = TokenShards(meta.shard_paths(Path(source), "val"), meta.numpy_dtype, meta.tokenizer.vocab_size)
        return torch.from_numpy(shards.gather(np.zeros(1, dtype=np.int64), min(most, len(shards)))[0].astype(np.int64))
    ids: list[int] = []
    for text, _ in open_source(source).pieces():
        ids += tokenizer.encode(text)
        if len(ids) >= most:
            break
    return torch.tensor(ids[:most])


@torch.inference_mode()
def losses(net: GPT, windows: Tensor, make_cache: Callable[[int], KVCache] | None = None) -> Tensor:
    """Cross-entropy in nats of every target, (windows, context).

    Args:
        net: in evaluation mode.
        windows: of held_out_windows.
        make_cache: a cache for so many rows, through which keys and values pass; None = without.
    """
    return torch.cat([loss for loss, _ in _passes(net, windows, make_cache)])


def perplexity(net: GPT, windows: Tensor, make_cache: Callable[[int], KVCache] | None = None) -> float:
    """exp of the mean of `losses`."""
    return float(losses(net, windows, make_cache).double().mean().exp())


@torch.inference_mode()
def likeliest(net: GPT, windows: Tensor, make_cache: Callable[[int], KVCache] | None = None) -> Tensor:
    """The likeliest token in place of every target, int64 (windows, context). Arguments as `losses`."""
    return torch.cat([best for _, best in _passes(net, windows, make_cache)])


def _passes(net: GPT, windows: Tensor, make_cache: Callable[[int], KVCache] | None) -> Iterator[tuple[Tensor, Tensor]]:
    device, context = net.token_embedding.weight.device, windows.shape[1] - 1
    for batch in windows.split(max(1, BATCH_TOKENS // context)):
        ids_BT, targets_BT = batch[:, :-1].to(device), batch[:, 1:].to(device)
        hidden_BTC = net.hidden(ids_BT, cache=make_cache(len(batch)) if make_cache else None)
        losses, best = [], []
        for hidden_TC, targets_T in zip(hidden_BTC, targets_BT):  # logits of one row at a time
            logits_TV = net.logits(hidden_TC).float()
            losses.append(F.cross_entropy(logits_TV, targets_T, reduction="none").cpu())
            best.append(logits_TV.argmax(-1).cpu())
        yield torch.stack(losses), torch.stack(best)
