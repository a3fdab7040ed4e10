"""LabelledData: answers that are wanted or not, one by one, for Kahneman-Tversky optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_gpt.data.row_data import RowData, shifted
from lightning_gpt.data.row_shapes import Completed, RowEncoder

Labelled = tuple[Completed, bool]


class LabelledData(RowData):
    """Rows of `prompt, completion, label`; pairs of `prompt, chosen, rejected` count as two rows each.

    Batches: {"input_ids", "targets"} (B, T), "labels" (B,) bool, and "mismatched_input_ids", "mismatched_targets"
    (B, T'): every prompt with the answer of another example of the batch, on which the KL divergence is estimated
    (Ethayarajh et al., 2024). Settings are RowData's; batch_size must be at least 2.
    """

    def encode(self, encoder: RowEncoder, row: Mapping[str, Any]) -> list[Labelled]:
        """One example, or two of a pair."""
        if "chosen" in row:
            pair = encoder.pair(row)
            found = [(Completed(pair.prompt, pair.chosen), True), (Completed(pair.prompt, pair.rejected), False)]
        else:
            found = [encoder.labelled(row)]
        return [(Completed(*self.fit_in(one.prompt, one.completion)), label) for one, label in found]

    def arrange(self, examples: list[list[Labelled]]) -> list[Labelled]:
        """All in one list."""
        if self.batch_size < 2:
            raise ValueError("data.batch_size=1: every prompt needs another example's answer beside it, use 2 or more")
        return [one for few in examples for one in few]

    def collate(self, examples: list[Labelled]) -> dict[str, torch.Tensor]:
        """Rows, labels, and the prompts with the next example's answer."""
        real = [one for one, _ in examples]
        others = [
            Completed(*self.fit_in(one.prompt, other.completion)) for one, other in zip(real, real[1:] + real[:1])
        ]
        batch = self._rows_of(real)
        mismatched = self._rows_of(others)
        return {
            **batch,
            "labels": torch.tensor([label for _, label in examples], dtype=torch.bool),
            **{f"mismatched_{name}": tensor for name, tensor in mismatched.items()},
        }

    def _rows_of(self, some: list[Completed]) -> dict[str, torch.Tensor]:
        rows = [one.prompt + one.completion for one in some] or [[0, 0]]
        spoken = [[False] * len(one.prompt) + [True] * len(one.completion) for one in some] or [[False, False]]
        return shifted(rows, spoken, self.block_size)
