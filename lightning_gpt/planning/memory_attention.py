"""What attention keeps for the backward pass, by the path that the network takes (nn/attention_paths.py).

Each number was read off the code and agrees with autograd's saved tensors (tests/planning/test_memory_activations.py).
"""

from typing import NamedTuple

import torch

from lightning_gpt.nn.attention_paths import choose_path, fused_attention, fused_causal_attention, plain_attention
from lightning_gpt.nn.blocked_attention import RECOMPUTE_FROM, blocked_causal_attention, blocks_of
from lightning_gpt.nn.flex import flex_causal_attention
from lightning_gpt.planning.memory_job import TrainingJob


class Use(NamedTuple):
    """Bytes of one part of a forward pass."""

    saved: float = 0.0
    """Kept for the backward pass."""
    passing: float = 0.0
    """Of other tensors, made and freed again."""
    working: float = 0.0
    """That its backward pass holds at most at a time, besides gradients of weights."""

    def __add__(self, other: "Use") -> "Use":  # of parts that run one after the other
        return Use(self.saved + other.saved, self.passing + other.passing, max(self.working, other.working))


def norm_use(job: TrainingJob, rows: int, width: int, item: int, affine: bool, kind: str) -> tuple[bool, float]:
    """Whether a norm keeps its input, and the bytes of what else it keeps.

    On CPU PyTorch has no kernel for RMSNorm of 16 bits: it goes through float32, which is kept instead.
    """
    if kind == "layernorm":
        return True, 2 * rows * (job.bytes.weights if job.device == "cpu" else 4)
    if job.device == "cpu" and item == 2:
        return False, 4 * rows * width * (2 if affine else 1) + 4 * rows
    return True, 4 * rows


def path_name(job: TrainingJob, window: int | None, rows: int, tokens: int, training: bool = True) -> str:
    """plain, blocked, flash, math (softmax(q k^T) v written out inside PyTorch) or flex.

    Args:
        window: of the layer.
        rows, tokens: B and T of the batch.
        training: with dropout.
    """
    config = job.config
    window = None if window is not None and window >= tokens else window
    dropout = bool(config.dropout) and training
    biased = config.position == "alibi"
    path = choose_path(
        torch.device(job.device),
        job.dtype,
        queries=tokens,
        keys=tokens,
        whole=True,
        dropout=dropout,
        window=window,
        biased=biased,
        documents=job.documents,
        softcap=config.attention_softcap is not None,
        sinks=config.attention_sinks,
    )
    if path in (fused_attention, fused_causal_attention):
        # On CPU the fused kernel takes no dropout and no mask of three dimensions.
        three = biased and not job.documents
        return "math" if job.device == "cpu" and (dropout or three) else "flash"
    return {plain_attention: "plain", blocked_causal_attention: "blocked", flex_causal_attention: "flex"}[path]


def scores(job: TrainingJob, window: int | None, rows: int, tokens: int) -> float:
    """Weights of one layer that blocked attention keeps, B H times the keys of every query's block."""
    kept = sum((end - start) * (end - first) for first, start, end in blocks_of(tokens, window))
    return rows * job.config.n_head * kept


def attention_use(job: TrainingJob, layer: int, rows: int, tokens: int) -> Use:
    """From the normalised stream to the branch, of one layer; the input is not counted."""
    config, a, N = job.config, job.bytes.compute, rows * tokens
    query, key = N * config.n_head * config.head_size, N * config.kv_heads * config.head_size
    window = config.windows[layer]
    path = path_name(job, window, rows, tokens)
    views = path in ("flash", "flex")  # keep queries, keys and values as they come
    keeps_qkv, saved, passing = views, 0.0, N * config.n_embd * a
    if config.value_skip and layer:
        keeps_qkv = True
        saved += key * a if views else 0
        passing += key * a if not views else 0
    if config.qk_norm:
        for heads, numbers in ((config.n_head, query), (config.kv_heads, key)):
            keeps, more = norm_use(job, N * heads, config.head_size, a, config.qk_norm_affine, "rmsnorm")
            keeps_qkv, saved = keeps_qkv or keeps, saved + more
            saved += numbers * a if views and config.position != "rotary" else 0
            passing += numbers * a
    if config.position == "rotary":
        saved += (query + key) * a if views else 0
        passing += (query + key) * a * (3 if views else 4)
    saved += (query + 2 * key) * a if keeps_qkv else 0
    passing += (query + 2 * key) * a if not keeps_qkv else 0
    square = rows * config.n_head * tokens * tokens
    grads = 2 * (query + key) * a  # of queries, keys, values and the result
    if path == "flash":
        saved += query * a + 4 * rows * config.n_head * tokens
        # The result lies in memory as the queries do: unless head beside head, it is copied for the next matrix.
        apart = config.rope_fraction < 1 or (config.qk_norm and a == 2)
        saved += query * a if apart and job.device == "cpu" else 0
        working = grads
    elif path == "flex":
        saved += 2 * query * a + 4 * rows * config.n_head * tokens
        working = grads
    elif path == "blocked":
        kept = scores(job, None if window is not None and window >= tokens else window, rows, tokens)
        saved += (query + 2 * key + query) * a + (kept * a if tokens < RECOMPUTE_FROM else 0)
        passing += 2 * query * a
        working = grads + (query + 2 * key) * a
    else:
        item = 4 if path == "math" else a
        heads = 3 * query if path == "math" else query + 2 * key
        # The values of one head are a view: all of queries, keys and values stay with it.
        heads += query + key if path == "math" and a == 4 and config.n_head == 1 else 0
        times = 3 if config.dropout else 1
        times += config.attention_softcap is not None
        sinks = rows * config.n_head * tokens * item if config.attention_sinks else 0
        saved += heads * item + query * a + times * square * item + sinks
        passing += 2 * query * item + (2 + (config.attention_softcap is not None)) * square * item
        working = grads + 2 * square * item
    return Use(saved, passing, working)
