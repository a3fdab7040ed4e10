"""PreferenceData: pairs of answers, the better one named, for reward models and direct preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_gpt.data.row_data import RowData, shifted
from lightning_gpt.data.row_shapes import Pair, RowEncoder


class PreferenceData(RowData):
    """Rows of `prompt, chosen, rejected` (and `margin`); without prompt, what both answers begin with is it.

    Batches: {"input_ids", "targets"} (2B, T), the chosen answers first, then the rejected in the same order; targets
    are the answers' tokens. "margins" (B,) where the rows have them; "probabilities" (B,), of the chosen
    answer being the better one, where the rows say so; "index" (B,): which examples they are.
    Settings are RowData's.
    """

    def encode(self, encoder: RowEncoder, row: Mapping[str, Any]) -> Pair:
        """Prompt, chosen and rejected as tokens."""
        pair = encoder.pair(row)
        prompt, chosen, rejected = self.fit_in(pair.prompt, pair.chosen, pair.rejected)
        if chosen == rejected:
            raise ValueError(f"chosen and rejected are the same within max_length={self.block_size}: raise it")
        return Pair(prompt, chosen, rejected, pair.margin, pair.probability)

    def arrange(self, examples: list[Pair]) -> list[tuple[int, Pair]]:
        """With their numbers, by which a reference's log-probabilities are found."""
        return list(enumerate(examples))

    def collate(self, examples: list[tuple[int, Pair]]) -> dict[str, torch.Tensor]:
        """The chosen answers' rows, then the rejected ones'."""
        pairs = [pair for _, pair in examples]
        answers = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
        if not pairs:
            answers = [([0], [0])] * 2
        said = bool(pairs)
        rows = [prompt + answer for prompt, answer in answers]
        spoken = [[False] * len(prompt) + [said] * len(answer) for prompt, answer in answers]
        batch = shifted(rows, spoken, self.block_size)
        batch["index"] = torch.tensor([index for index, _ in examples], dtype=torch.int64)
        if any(pair.margin is not None for pair in pairs):
            batch["margins"] = torch.tensor([pair.margin or 0.0 for pair in pairs])
        if pairs and all(pair.probability is not None for pair in pairs):
            batch["probabilities"] = torch.tensor([pair.probability for pair in pairs])
        return batch
