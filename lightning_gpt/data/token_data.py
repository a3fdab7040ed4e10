"""TokenData: a prepared corpus as a LightningDataModule of next-token batches."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning_gpt.data.corpus_meta import TOKENIZER_FILE, CorpusMeta
from lightning_gpt.data.loader import EvalLoader, TrainLoader
from lightning_gpt.data.resumable import ResumableData
from lightning_gpt.data.sampler import EpochWindows, RandomWindows
from lightning_gpt.data.shards import TokenShards
from lightning_gpt.text.tokenizer import Tokenizer

MODES = {"random": RandomWindows, "epoch": EpochWindows}


class TokenData(ResumableData):
    """Windows of a prepared corpus, shifted by one, for pretraining.

    Training is an endless stream of windows; its position is the number of windows consumed by all ranks, is saved in
    every checkpoint, and survives a change of batch size or of the number of devices. An epoch of the Trainer is the
    optimizer steps in which the model sees as many tokens as the corpus has; stop by `max_steps`, `max_epochs: -1`.
    Validation shows every token once, the same whatever the number of devices. Use the Trainer with
    `use_distributed_sampler: false`: the ranks are told apart here.

    Args:
        data_dir: A directory made by `lightning-gpt prepare`.
        batch_size: Windows per device and forward pass (a micro-batch). One optimizer step sees
            batch_size x devices x accumulate_grad_batches x block_size tokens.
        block_size: Tokens per window, the length of context that the model trains on.
        val_batch_size: Windows per device in validation; null: as batch_size.
        val_block_size: Tokens per window in validation; null: as block_size. With more than block_size the model is
            built for them and validation shows how it reads beyond what it was trained on.
        mode: "random": windows anywhere, uniformly and with replacement. "epoch": the corpus cut into windows that do
            not overlap, each once per epoch, cut at another offset and put in another order in the next epoch.
        seed: Of the choice of windows; null: the global seed (`seed_everything`).
        documents: "join": windows run over document boundaries as if they were text. "separate": batches carry
            `document_ids`, by which attention can stay inside a document, and no target lies across a boundary.
        num_workers: 0: make a batch when it is asked for (some microseconds). More: a thread makes batches ahead.
        pin_memory: Page-locked batches, for fast copies to a GPU; null: when training on a GPU.

    Raises:
        ValueError: the directory is no prepared corpus, a file is damaged, a split is too short, a setting is wrong.
    """

    def __init__(
        self,
        data_dir: str,
        batch_size: int = 12,
        block_size: int = 1024,
        val_batch_size: int | None = None,
        val_block_size: int | None = None,
        mode: Literal["random", "epoch"] = "random",
        seed: int | None = None,
        documents: Literal["join", "separate"] = "join",
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.data_dir = Path(data_dir)
        self.batch_size = batch_size
        self.block_size = block_size
        self.val_batch_size = batch_size if val_batch_size is None else val_batch_size
        self.val_block_size = block_size if val_block_size is None else val_block_size
        self.mode = mode
        self.seed = seed
        self.documents = documents
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._check_settings()
        self.meta = CorpusMeta.load(self.data_dir)
        self._check_corpus()
        self._shards: dict[str, TokenShards] = {}

    @property
    def vocab_size(self) -> int:
        """Size of the tokenizer's vocabulary."""
        return self.meta.tokenizer.vocab_size

    @property
    def context_size(self) -> int:
        """The longest window of training and validation: what the model's block_size must be."""
        return max(self.block_size, self.val_block_size)

    @property
    def fingerprint(self) -> str:
        """Of text, tokenizer and recipe: equal for directories that hold the same ids."""
        return self.meta.fingerprint

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per validation token: bits per byte = nats per token / ln 2 / bytes per token."""
        return self.meta.split("val" if "val" in self.meta.splits else "train").bytes_per_token

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        path = self.data_dir / TOKENIZER_FILE
        try:
            return Tokenizer.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"{path} is missing: prepare the corpus again with --overwrite") from error
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}): prepare the corpus again with --overwrite") from error

    def train_dataloader(self) -> TrainLoader:
        """The endless stream, from where the checkpoint left it or else from its beginning."""
        position = self._position()
        shards = self._open("train")
        self._train_loader = TrainLoader(
            shards,
            MODES[self.mode](len(shards), self.block_size, self._stream_seed()),
            self.batch_size,
            self.block_size,
            separate=self.documents == "separate",
            **position,
            **self._placement(),
        )
        return self._train_loader

    def val_dataloader(self) -> EvalLoader | list:
        """The whole validation split once; nothing when the corpus has none."""
        if "val" not in self.meta.splits:
            return []
        separate = self.documents == "separate"
        shards = self._open("val")
        return EvalLoader(shards, self.val_batch_size, self.val_block_size, separate=separate, **self._placement())

    def test_dataloader(self) -> EvalLoader | list:
        """As validation: a prepared corpus has two splits."""
        return self.val_dataloader()

    def __getstate__(self) -> dict[str, Any]:
        """Without open files and the stream, so that processes can be spawned with it."""
        return {**super().__getstate__(), "_shards": {}}

    @property
    def place(self) -> str:
        """Where the data come from, for messages."""
        return f"data_dir={str(self.data_dir)!r}"

    def _open(self, split: str) -> TokenShards:
        if split not in self._shards:
            separate = self.documents == "separate"
            self._shards[split] = TokenShards(
                self.meta.shard_paths(self.data_dir, split),
                self.meta.numpy_dtype,
                self.vocab_size,
                self.meta.offsets_paths(self.data_dir, split) if separate else (),
            )
        return self._shards[split]

    def _check_settings(self) -> None:
        for name in ("batch_size", "block_size", "val_batch_size", "val_block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers} must be 0 or more")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed={self.seed} must be 0 or more")
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} must be one of {sorted(MODES)}")
        if self.documents not in ("join", "separate"):
            raise ValueError(f"documents={self.documents!r} must be 'join' or 'separate'")

    def _check_corpus(self) -> None:
        # validation fills its last window up, so it only needs one target
        for split, needed in (("train", self.block_size + 1), ("val", 2)):
            if split == "val" and split not in self.meta.splits:
                continue
            tokens = self.meta.split(split).tokens
            if tokens < needed:
                lower = f"set block_size to at most {tokens - 1}, or " if split == "train" and tokens > 1 else ""
                raise ValueError(
                    f"block_size={self.block_size} needs {needed:,} tokens, but the {split} split of {self.data_dir} "
                    f"has {tokens:,}: {lower}prepare it with more text"
                )
        if self.tokenizer.fingerprint != self.meta.tokenizer.fingerprint:
            raise ValueError(
                f"{self.data_dir / TOKENIZER_FILE} is not the tokenizer that made the ids (fingerprint "
                f"{self.tokenizer.fingerprint[:12]}, meta.json says {self.meta.tokenizer.fingerprint[:12]}): prepare "
                "the corpus again with --overwrite"
            )
