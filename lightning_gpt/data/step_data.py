"""StepData: solutions in steps, each right or wrong, for process supervision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_gpt.data.loader import IGNORE
from lightning_gpt.data.row_data import RowData, padded
from lightning_gpt.data.row_shapes import RowEncoder

LabelledSteps = tuple[list[int], list[int]]


class StepData(RowData):
    """Rows of `prompt, completions, labels`: steps of a solution and whether each is right (Lightman et al., 2023).

    Batches: {"input_ids", "targets"} (B, T): at the last token of a step 1 (right) or 0 (wrong), -100 elsewhere.

    Args:
        train: see RowData, as are all settings that are not named here.
        step_end: text after each step, by which the model sees that it has ended; its last token carries the label.
        until_wrong: leave out what follows the first wrong step, which is neither right nor wrong.
    """

    def __init__(self, train: str, step_end: str = "\n", until_wrong: bool = False, **kwargs: Any) -> None:
        super().__init__(train, **kwargs)
        self.save_hyperparameters(logger=False)
        self.step_end, self.until_wrong = step_end, until_wrong

    def encode(self, encoder: RowEncoder, row: Mapping[str, Any]) -> LabelledSteps:
        """Tokens of prompt and steps, and a label for each of them."""
        found = encoder.steps(row)
        end = self.tokenizer.encode(self.step_end)
        ids, labels = list(found.prompt), [IGNORE] * len(found.prompt)
        for step, right in zip(found.steps, found.labels):
            tokens = step + end
            ids += tokens
            labels += [IGNORE] * (len(tokens) - 1) + [int(right)]
            if self.until_wrong and not right:
                break
        if len(ids) > self.block_size:
            self.shortened["answers"] += 1
            ids, labels = ids[: self.block_size], labels[: self.block_size]
        if all(label == IGNORE for label in labels):
            raise ValueError(f"no step ends within max_length={self.block_size}: raise it or shorten the prompt")
        return ids, labels

    def collate(self, examples: list[LabelledSteps]) -> dict[str, torch.Tensor]:
        """Rows and labels, filled up at the end."""
        ids, labels = [one[0] for one in examples], [one[1] for one in examples]
        return {
            "input_ids": padded(ids, 0, self.block_size),
            "targets": padded(labels, IGNORE, self.block_size),
            "num_tokens": torch.tensor(sum(map(len, ids))),
        }
