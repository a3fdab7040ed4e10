"""PromptData: prompts that a policy answers while it learns, with whatever columns its reward needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_gpt.data.row_data import RowData
from lightning_gpt.data.row_shapes import Prompt, RowEncoder


class PromptData(RowData):
    """Rows of `prompt` and any other columns; of preference pairs only the prompt is used for generation.

    Batches: {"prompts": token ids of each, "texts": the same as text, "columns": {name: values}}. A prompt longer than
    max_length, by default what the model's context leaves beside the longest answer, loses its beginning (counted).
    Settings are RowData's.
    """

    def encode(self, encoder: RowEncoder, row: Mapping[str, Any]) -> Prompt:
        """The prompt as tokens and text, and the row's columns."""
        prompt = encoder.prompt(row)
        self.shortened["prompts"] += len(prompt.ids) > self.block_size
        return Prompt(prompt.ids[-self.block_size :], prompt.text, prompt.columns)

    def collate(self, examples: list[Prompt]) -> dict[str, Any]:
        """Lists, since prompts differ in length."""
        names = sorted({name for one in examples for name in one.columns})
        return {
            "prompts": [one.ids for one in examples],
            "texts": [one.text for one in examples],
            "columns": {name: [one.columns.get(name) for one in examples] for name in names},
        }
