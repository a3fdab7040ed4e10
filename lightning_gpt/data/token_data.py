"""TokenData: a prepared corpus as a LightningDataModule of next-token batches."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

from lightning_gpt.data.corpus_meta import TOKENIZER_FILE, CorpusMeta
from lightning_gpt.data.loader import EvalLoader, TrainLoader
from lightning_gpt.data.sampler import EpochWindows, RandomWindows
from lightning_gpt.data.shards import TokenShards
from lightning_gpt.text.tokenizer import Tokenizer

MODES = {"random": RandomWindows, "epoch": EpochWindows}


class TokenData(LightningDataModule):
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
        self._train_loader: TrainLoader | None = None
        self._loaded_by: object = None  # the Trainer of _train_loader
        self._resumed: dict[str, Any] = {}

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
        consumed = self._consumed_samples()
        seed = self._stream_seed()
        shards = self._open("train")
        trainer = self.trainer
        self._loaded_by = trainer
        self._train_loader = TrainLoader(
            shards,
            MODES[self.mode](len(shards), self.block_size, seed),
            self.batch_size,
            self.block_size,
            consumed_samples=consumed,
            accumulate=1 if trainer is None else trainer.accumulate_grad_batches,
            repeat=bool(trainer is not None and trainer.overfit_batches),
            batches_done=None
            if trainer is None
            else lambda: trainer.fit_loop.epoch_loop.batch_progress.total.processed,
            **self._placement(),
        )
        return self._train_loader

    def val_dataloader(self) -> EvalLoader | list:
        """The whole validation split once; nothing when the corpus has none."""
        if "val" not in self.meta.splits:
            return []
        return EvalLoader(self._open("val"), self.val_batch_size, self.val_block_size, **self._placement())

    def test_dataloader(self) -> EvalLoader | list:
        """As validation: a prepared corpus has two splits."""
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Where the stream of training windows stands, and of what it is. Empty outside training."""
        if self._train_loader is None:
            return {}
        return {
            **self._train_loader.state_dict(),
            "seed": self._train_loader.windows.seed,
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a checkpoint's position. It is checked when training asks for data: evaluation may use others."""
        self._resumed = dict(state_dict)
        self._train_loader = None

    def __getstate__(self) -> dict[str, Any]:
        """Without open files and the stream, so that processes can be spawned with it."""
        return {**self.__dict__, "_shards": {}, "_train_loader": None, "_loaded_by": None}

    def _consumed_samples(self) -> int:
        if self._train_loader is not None and self._loaded_by is self.trainer:
            return (
                self._train_loader.consumed_samples
            )  # asked again in the same fit (reload_dataloaders_every_n_epochs)
        trained_on = self._resumed.get("fingerprint", self.fingerprint)
        if trained_on != self.fingerprint:
            raise ValueError(
                f"data_dir={str(self.data_dir)!r} holds another corpus (fingerprint {self.fingerprint[:12]}) than the "
                f"checkpoint was trained on ({trained_on[:12]}): point data_dir at that one, or start a new run from "
                "the checkpoint's weights"
            )
        return int(self._resumed.get("consumed_samples", 0))

    def _stream_seed(self) -> int:
        saved = self._resumed.get("seed")
        if self.seed is None:
            return int(os.environ.get("PL_GLOBAL_SEED", "0")) if saved is None else saved
        if saved not in (None, self.seed):
            rank_zero_warn(
                f"data seed={self.seed} replaces the checkpoint's {saved}: another order of windows from here"
            )
        return self.seed

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

    def _placement(self) -> dict[str, Any]:
        """What both loaders need to know of the settings and of this process."""
        rank, world_size, on_gpu = 0, 1, False
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            on_gpu = self.trainer.strategy.root_device.type == "cuda"
        elif torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return {
            "separate": self.documents == "separate",
            "rank": rank,
            "world_size": world_size,
            "prefetch": self.num_workers > 0,
            "pin_memory": on_gpu if self.pin_memory is None else self.pin_memory,
        }

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
