"""InstructionData: conversations, prompts with answers, or plain texts, for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal

import torch

from lightning_gpt.data.loader import IGNORE
from lightning_gpt.data.packing import pack
from lightning_gpt.data.row_data import RowData, shifted
from lightning_gpt.data.row_shapes import RowEncoder
from lightning_gpt.text.chat import MarkedTokens


class InstructionData(RowData):
    """Rows of `messages`, `prompt, completion` or `text`.

    Batches: {"input_ids", "targets"} (B, T), with packing also "document_ids" (B, T), by which no token sees another
    example. Rows are filled up at the end; what fills them is no target.

    Args:
        train: see RowData, as are all settings that are not named here.
        learn_from: completion = the assistant's words only; all = every token.
        packing: put several examples into one row of max_length tokens.
    """

    def __init__(
        self,
        train: str,
        learn_from: Literal["completion", "all"] = "completion",
        packing: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(train, **kwargs)
        self.save_hyperparameters(logger=False)
        self.learn_from, self.packing = learn_from, packing

    def encode(self, encoder: RowEncoder, row: Mapping[str, Any]) -> MarkedTokens:
        """Tokens and which are learnt from."""
        marked = encoder.text(row)
        ids, spoken = marked.ids, marked.spoken if self.learn_from == "completion" else [True] * len(marked.ids)
        limit = self.block_size + 1
        if len(ids) > limit:
            if "text" in row or "messages" in row:
                ids, spoken = ids[:limit], spoken[:limit]
                self.shortened["answers"] += 1
            else:
                prompt, answer = self.fit_in(ids[: spoken.index(True)], ids[spoken.index(True) :])
                ids, spoken = prompt + answer, [False] * len(prompt) + [True] * len(answer)
            if not any(spoken[1:]):
                raise ValueError(
                    f"no token is left to learn from within max_length={self.block_size}: raise it or shorten the row"
                )
        return MarkedTokens(ids, spoken)

    def arrange(self, examples: list[MarkedTokens]) -> list[list[MarkedTokens]]:
        """Rows of one or, when packing, several examples."""
        if not self.packing:
            return [[example] for example in examples]
        lengths = [len(example.ids) - 1 for example in examples]
        return [[examples[index] for index in row] for row in pack(lengths, self.block_size)]

    def collate(self, examples: list[list[MarkedTokens]]) -> dict[str, torch.Tensor]:
        """One row for each; an example's last token is target only, so packed rows hold n - 1 tokens of each."""
        if not self.packing:
            singles = [row[0] for row in examples]
            return shifted([one.ids for one in singles], [one.spoken for one in singles], self.block_size)
        size = self.block_size
        batch = {
            "input_ids": torch.zeros(max(len(examples), 1), size, dtype=torch.int64),
            "targets": torch.full((max(len(examples), 1), size), IGNORE, dtype=torch.int64),
            "document_ids": torch.full((max(len(examples), 1), size), -1, dtype=torch.int64),
        }
        for row, packed in enumerate(examples):
            ids = list(chain.from_iterable(one.ids[:-1] for one in packed))
            targets = [token if said else IGNORE for one in packed for token, said in zip(one.ids[1:], one.spoken[1:])]
            documents = [number for number, one in enumerate(packed) for _ in one.ids[1:]]
            for name, values in (("input_ids", ids), ("targets", targets), ("document_ids", documents)):
                batch[name][row, : len(values)] = torch.tensor(values)
        batch["num_tokens"] = (batch["document_ids"] >= 0).sum()
        return batch
