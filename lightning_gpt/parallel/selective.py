"""What a selectively checkpointed block keeps: the results that are dear to compute again and not large."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy

_aten = torch.ops.aten
SAVED = frozenset(
    getattr(_aten, name).default
    for name in (
        # Products with weights: most of a block's FLOPs. Those of written-out attention (bmm) are not among them: they
        # are few, and the T x T weights between them are what is large (Korthikanti et al., 2022, section 5).
        *("mm", "addmm", "_grouped_mm", "_scaled_mm"),
        *("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"),
        *("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    )
    if hasattr(_aten, name)
)
"""Operations whose results a selectively checkpointed block keeps; norms, activations, rotations, sums, casts and
written-out attention are computed again."""


def keeps(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the result of an operation is kept: not where it draws dropout, or the generator would stand elsewhere
    for what is drawn after it when that is computed again."""
    if op not in SAVED:
        return False
    names = [one.name for one in op._schema.arguments]
    if "dropout_p" not in names:
        return True
    place = names.index("dropout_p")
    return not (args[place] if place < len(args) else kwargs.get("dropout_p", 0.0))


def save_products(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """The policy of torch.utils.checkpoint.create_selective_checkpoint_contexts."""
    return CheckpointPolicy.MUST_SAVE if keeps(op, args, kwargs) else CheckpointPolicy.PREFER_RECOMPUTE
