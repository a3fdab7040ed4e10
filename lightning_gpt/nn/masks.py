"""Who sees whom: additive masks. Legend: B batch, H heads, T queries, S keys."""

import math

import torch
from torch import Tensor


def attention_mask(
    query_positions: Tensor,
    key_positions: Tensor,
    dtype: torch.dtype,
    window: int | None = None,
    slopes_H: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Tensor:
    """What is added to the scores: a query sees keys at its own position and before, within window and document.

    Args:
        query_positions: (T,) or (B, T) int64.
        key_positions: (S,) or (B, S) int64; negative = nothing is there.
        dtype: of the scores.
        window: a query sees itself and the window - 1 tokens before it (Child et al., 2019; Mistral); None = all.
        slopes_H: ALiBi, what each head takes off per token of distance (Press et al., 2022); None = nothing.
        document_ids: (B, S) int64 with S = T; a token sees only its own document. None = one document a row.

    Returns:
        (T, S), or (B, 1, T, S) when rows differ, with H for 1 when heads do; -inf where forbidden.
    """
    distance = query_positions[..., :, None] - key_positions[..., None, :]
    allowed = (distance >= 0) & (key_positions >= 0)[..., None, :]
    if window is not None:
        allowed = allowed & (distance < window)
    if distance.ndim == 3:
        distance, allowed = distance[:, None], allowed[:, None]
    if document_ids is not None:
        allowed = allowed & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -math.inf)
    if slopes_H is None:
        return mask
    return mask - (slopes_H[:, None, None] * distance.clamp(min=0)).to(dtype)


def within_documents(document_ids_BT: Tensor) -> Tensor:
    """Each token's position in its own document, (B, T); a document's tokens stand together."""
    places_T = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device)
    begins_BT = torch.zeros_like(document_ids_BT, dtype=torch.bool)
    begins_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    return places_T - torch.where(begins_BT, places_T, 0).cummax(-1).values
