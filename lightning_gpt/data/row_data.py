"""What the data modules of fine-tuning share: rows of files, tokenised once with the model's own tokenizer."""

from __future__ import annotations

import hashlib
import sys
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from lightning_gpt.data.example_loader import ExampleEvalLoader, ExampleTrainLoader
from lightning_gpt.data.loader import IGNORE
from lightning_gpt.data.resumable import ResumableData
from lightning_gpt.data.row_files import read_rows
from lightning_gpt.data.row_shapes import RowEncoder
from lightning_gpt.data.tokenizer_source import load_tokenizer
from lightning_gpt.text.chat import ChatTemplate
from lightning_gpt.text.tokenizer import Tokenizer

MULTIPLE = 32
"""Lengths are filled up to a multiple: kernels are chosen, and on some processors compiled, by shape."""


class RowData(ResumableData):
    """Rows of JSONL, JSON or parquet files, or of a Hugging Face dataset, as batches for fine-tuning.

    The tokenizer and the longest row are the model's, which the task hands over (`use_model`) before training begins.
    Every example is seen once an epoch, in another order each; training goes on exactly where a checkpoint left it.

    Args:
        train: file, folder or Hugging Face dataset with the rows to learn from.
        val: the same for validation (of a Hugging Face dataset the split "test"); null = `val_fraction` of train.
        val_fraction: share of train that is kept for validation when val is null, the last rows of it.
        batch_size: examples per device and forward pass (a micro-batch).
        val_batch_size: examples per device in validation; null: as batch_size.
        max_length: longest example in tokens; null = the model's block_size. Of longer ones the prompt loses its
            beginning, then the answer its end; both are counted in a warning.
        chat_template: how conversations are written: chatml, plain, or a Jinja source; null = the model's own.
        as_chat: take string prompts for a user's message and string answers for the assistant's.
        invalid: a row that cannot be used stops the run with its place and the reason, or is left out and counted.
        limit: use only the first so many rows of train.
        val_limit: use only the first so many rows of val.
        tokenizer: name or file, for use without a model; null = the model's.
        seed: of the order of examples; null: the global seed (`seed_everything`).
        num_workers: 0: make a batch when it is asked for. More: a thread makes batches ahead.
        pin_memory: page-locked batches; null: when training on a GPU.

    Raises:
        ValueError: no such file, a row that cannot be used, or a setting that is wrong, by name.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        val_fraction: float = 0.0,
        batch_size: int = 16,
        val_batch_size: int | None = None,
        max_length: int | None = None,
        chat_template: str | None = None,
        as_chat: bool = False,
        invalid: Literal["error", "skip"] = "error",
        limit: int | None = None,
        val_limit: int | None = None,
        tokenizer: str | None = None,
        seed: int | None = None,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.train, self.val, self.val_fraction = train, val, val_fraction
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size or batch_size
        self.max_length = max_length
        self.chat_template, self.as_chat = chat_template, as_chat
        self.invalid, self.limit, self.val_limit = invalid, limit, val_limit
        self.seed, self.num_workers, self.pin_memory = seed, num_workers, pin_memory
        for name in ("batch_size", "val_batch_size", "max_length", "limit", "val_limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"data.val_fraction={val_fraction} must be 0 or more and below 1")
        if val is not None and val_fraction:
            raise ValueError("data.val and data.val_fraction exclude each other: give one")
        self._tokenizer = load_tokenizer(tokenizer) if tokenizer is not None else None
        self._encoder: RowEncoder | None = None
        self._splits: dict[str, list[Any]] = {}
        self._rows: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        self._fingerprint: str | None = None
        self.shortened = {"prompts": 0, "answers": 0}

    @abstractmethod
    def encode(self, encoder: RowEncoder, row: Mapping[str, Any]) -> Any:
        """One example of a row; ValueError when it cannot be used."""

    @abstractmethod
    def collate(self, examples: list[Any]) -> dict[str, Any]:
        """A batch of examples; of none, one that counts for nothing."""

    def use_model(self, tokenizer: Tokenizer, block_size: int) -> None:
        """Takes the model's tokenizer and context; called by the task.

        Raises:
            ValueError: max_length is beyond the model's context, or data.tokenizer is another tokenizer.
        """
        if self._tokenizer is not None and self._tokenizer.fingerprint != tokenizer.fingerprint:
            raise ValueError(
                "data.tokenizer is another tokenizer than the model's: leave it out, the model's own is used"
            )
        if self.max_length is not None and self.max_length > block_size:
            raise ValueError(
                f"data.max_length={self.max_length} is beyond the model's context of {block_size} tokens: lower it"
            )
        self._tokenizer = tokenizer
        self.max_length = self.max_length or block_size

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            ValueError: nobody has named one yet.
        """
        if self._tokenizer is None:
            raise ValueError("data.tokenizer is not set, and no model has handed over its own")
        return self._tokenizer

    @property
    def block_size(self) -> int:
        """Tokens of the longest example."""
        assert self.max_length is not None, "use_model comes first, or set data.max_length"
        return self.max_length

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the training examples as tokens, and of the tokenizer."""
        if self._fingerprint is None:
            digest = hashlib.sha256(self.tokenizer.fingerprint.encode())
            for example in self.examples("train"):
                digest.update(repr(example).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    @property
    def place(self) -> str:
        """Where the data come from, for messages."""
        return f"data.train={self.train!r}"

    @property
    def encoder(self) -> RowEncoder:
        """How rows become tokens."""
        if self._encoder is None:
            self._encoder = RowEncoder(ChatTemplate(self.tokenizer, self.chat_template), self.as_chat)
        return self._encoder

    def rows(self, split: str) -> list[tuple[str, dict[str, Any]]]:
        """Rows of "train" or "val" with their places; none when there is no validation."""
        if not self._rows:
            train = read_rows(self.train, self.limit)
            if self.val is not None:
                val = read_rows(self.val, self.val_limit, "test" if "/" in self.val else "train")
            else:
                kept = len(train) - round(self.val_fraction * len(train))
                train, val = train[:kept], train[kept:][: self.val_limit]
            self._rows = {"train": train, "val": val}
        return self._rows[split]

    @property
    def conversational(self) -> bool:
        """Whether rows are conversations, by the first of them, or are taken for such."""
        _, first = self.rows("train")[0]
        return self.as_chat or isinstance(first.get("prompt", first.get("chosen", first.get("messages"))), list)

    def examples(self, split: str) -> list[Any]:
        """Tokenised examples of "train" or "val".

        Raises:
            ValueError: a row that cannot be used, with its place; none can.
        """
        if split not in self._splits:
            found, wrong = [], []
            before = dict(self.shortened)
            rows, told = self.rows(split), time.monotonic()
            for number, (where, row) in enumerate(rows):
                if time.monotonic() - told > 5:
                    told = time.monotonic()
                    rank_zero_only(print)(f"{split}: {number:,} of {len(rows):,} rows tokenised", file=sys.stderr)
                try:
                    found.append(self.encode(self.encoder, row))
                except ValueError as error:
                    if self.invalid == "error":
                        raise ValueError(f"{where}: {error} (data.invalid: skip leaves such rows out)") from None
                    wrong.append(f"{where}: {error}")
            if wrong:
                rank_zero_warn(f"{len(wrong)} of {len(wrong) + len(found)} rows left out, the first: {wrong[0]}")
            for what, count in self.shortened.items():
                if count > before[what]:
                    rank_zero_warn(
                        f"{count - before[what]} {what} of {split} were shortened to {self.block_size} tokens in all"
                    )
            if not found and split == "train":
                raise ValueError(f"data.train={self.train}: not one row can be used")
            self._splits[split] = self.arrange(found)
        return self._splits[split]

    def arrange(self, examples: list[Any]) -> list[Any]:
        """What is dealt out as one example; packing puts several together."""
        return examples

    def fit_in(self, prompt: list[int], *answers: list[int]) -> tuple[list[int], ...]:
        """Prompt and answers cut so that prompt + each answer has at most block_size + 1 tokens.

        The prompt loses its beginning; only when an answer alone is longer than half the context the answer's end
        goes too.
        """
        limit = self.block_size + 1
        room = max(limit - max(len(prompt), 1), limit // 2)
        self.shortened["answers"] += sum(len(answer) > room for answer in answers)
        cut = [answer[:room] for answer in answers]
        keep = limit - max(map(len, cut))
        self.shortened["prompts"] += len(prompt) > keep
        return (prompt[-keep:], *cut)

    def train_dataloader(self) -> ExampleTrainLoader:
        """The endless stream, from where the checkpoint left it or else from its beginning."""
        position = self._position()
        examples = self.examples("train")
        self._train_loader = ExampleTrainLoader(
            examples, self.collate, self.batch_size, self._stream_seed(), **position, **self._placement()
        )
        return self._train_loader

    def val_dataloader(self) -> ExampleEvalLoader | list:
        """All validation examples once; nothing when there are none."""
        examples = self.examples("val")
        if not examples:
            return []
        return ExampleEvalLoader(examples, self.collate, self.val_batch_size, **self._placement())

    def test_dataloader(self) -> ExampleEvalLoader | list:
        """As validation."""
        return self.val_dataloader()


def padded(rows: list[list[int]], fill: int, limit: int) -> Tensor:
    """(B, T) int64: rows filled up on the right to the longest, and that to a multiple of 32 of at most `limit`."""
    longest = max(1, *map(len, rows)) if rows else 1
    length = max(longest, min(-(-longest // MULTIPLE) * MULTIPLE, limit))
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows or [[]]], dtype=torch.int64)


def shifted(rows: list[list[int]], spoken: list[list[bool]], limit: int) -> dict[str, Tensor]:
    """{"input_ids", "targets"} (B, T): the target of a token is the next one, -100 where it is not spoken; and
    "num_tokens", how many tokens are no filling.

    Args:
        rows: token ids, at least two each; none makes one row without targets.
        spoken: which of them are learnt from or scored.
        limit: longest T.
    """
    targets = [
        [token if said else IGNORE for token, said in zip(row[1:], marks[1:])]
        for row, marks in zip(rows, spoken, strict=True)
    ]
    return {
        "input_ids": padded([row[:-1] for row in rows], 0, limit),
        "targets": padded(targets, IGNORE, limit),
        "num_tokens": torch.tensor(sum(len(row) - 1 for row in rows)),
    }
