"""Perplexity of token ids."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_gpt.evaluation.scoring import Scorer


def perplexity(scorer: Scorer, ids: Sequence[int], prefix: int) -> float:
    """exp of the mean negative log-likelihood of all tokens, each seen with as much of what stands before it as the
    scorer's windows hold (Scorer.rolling).

    Args:
        scorer: around a network; its `limit` is the length of the windows.
        ids: at least one.
        prefix: stands before the first.
    """
    return math.exp(-scorer.rolling([list(ids)], prefix)[0] / len(ids))
