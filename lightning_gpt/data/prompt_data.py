"""PromptData: prompts that a policy answers while it learns, with whatever columns its reward needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_gpt.data.row_data import RowData
from lightning_gpt.data.row_shapes import Prompt, RowEncoder


class PromptData(RowData):
    """Rows of `prompt` and any other columns; of preference pairs only the prompt is used for generation.

    Batches: {"prompts": token ids of each, "texts": the same as text, "columns": {name: values}}. A prompt longer than
    max_length loses its beginning (counted): set max_length to what the model's context leaves beside the answer; null
    = half the context. Settings are RowData's.
    """

    def use_model(self, tokenizer: Any, block_size: int) -> None:
        """Takes the model's tokenizer; prompts may fill half its context unless max_length says otherwise."""
        super().use_model(tokenizer, block_size if self.max_length is not None else max(block_size // 2, 1))

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
