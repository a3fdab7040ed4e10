"""FlexAttention (Dong et al., 2024): windows, ALiBi, documents and softcap in one generated GPU kernel that skips what
is masked and keeps no T x T tensor."""

import importlib.util
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Scores are computed in squares of this side: shorter sequences have nothing to skip."""


@cache
def flex_runs_on(device_type: str) -> bool:
    """Whether the kernel can be generated there; it needs CUDA and Triton."""
    return device_type == "cuda" and importlib.util.find_spec("triton") is not None


@cache
def _compiled_on(device_type: str, name: str):
    """A function of torch.nn.attention.flex_attention: compiled where the kernel runs, elsewhere PyTorch's slow
    reference of the same function, which tests use."""
    from torch.nn.attention import flex_attention as module

    function = getattr(module, name)
    return torch.compile(function, dynamic=False) if flex_runs_on(device_type) else function


@cache
def _shared_mask(tokens: int, window: int | None, device: torch.device) -> "BlockMask":
    """Of every batch of this length."""
    return _block_mask(tokens, window, None, device)


def flex_block_mask(tokens: int, window: int | None, document_ids: Tensor | None, device: torch.device) -> "BlockMask":
    """Which blocks of scores are needed at all, for a whole causal sequence.

    Args:
        tokens: T.
        window: as in attention_mask.
        document_ids: (B, T) or None.
        device: of the queries.
    """
    if document_ids is None:
        return _shared_mask(tokens, window, device)
    return _block_mask(tokens, window, document_ids, device)


def _block_mask(tokens: int, window: int | None, document_ids: Tensor | None, device: torch.device) -> "BlockMask":
    def visible(batch, head, query, key):
        seen = query >= key
        if window is not None:
            seen = seen & (query - key < window)
        if document_ids is not None:
            seen = seen & (document_ids[batch, query] == document_ids[batch, key])
        return seen

    rows = None if document_ids is None else len(document_ids)
    create = _compiled_on(device.type, "create_block_mask")
    return create(visible, rows, None, tokens, tokens, device=device)


def flex_causal_attention(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    mask: "BlockMask",
    scale: float,
    dropout: float,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    slopes_H: Tensor | None = None,
) -> Tensor:
    """plain_attention with a block mask, without dropout and sinks.

    Args:
        mask: of flex_block_mask.
        softcap, slopes_H: as in plain_attention and attention_mask.

    Returns:
        (B, H, T, D).
    """
    assert not dropout and sinks_H is None, "choose_path gives those to another path"

    def change(score, batch, head, query, key):
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if slopes_H is not None:
            score = score - slopes_H[head] * (query - key)
        return score

    return _compiled_on(q_BHTD.device.type, "flex_attention")(
        q_BHTD,
        k_BKTD,
        v_BKTD,
        score_mod=change if softcap is not None or slopes_H is not None else None,
        block_mask=mask,
        scale=scale,
        enable_gqa=q_BHTD.shape[1] != k_BKTD.shape[1],
    )
