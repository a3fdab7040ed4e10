"""ImageTextData: pictures with captions, for contrastive learning, and pictures with classes, to test it on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_gpt.data.picture_files import Picture, caption_of, read_pictures
from lightning_gpt.data.picture_loader import PictureEvalLoader, PictureTrainLoader, first_examples
from lightning_gpt.data.pictures import PictureError
from lightning_gpt.data.resumable import ResumableData
from lightning_gpt.nn.pixels import pixel_transform

Tokenize = Callable[[Sequence[str]], Tensor]
"""Captions -> (B, L) int64, filled up and cut to the text tower's context."""


class ImageTextData(ResumableData):
    """Pictures of tables, folders, webdataset shards or a Hugging Face dataset (picture_files.py) with their captions.

    Batches: {"images": (B, 3, H, W), "texts": (B, L) int64, "index": (B,) which picture}; of the zero-shot set
    {"images", "labels": (B,) int64, "index"}. Size and normalisation of pictures and the tokenizer are the model's,
    which the task hands over (`use_towers`). Every picture is seen once an epoch, augmented anew as a function of
    (seed, sample number), so that training goes on exactly where a checkpoint left it.

    Args:
        train: table, folder, shard or Hugging Face dataset to learn from.
        val: the same for validation (of a Hugging Face dataset the split "test"); null = none.
        transfer: a second set to validate on, under val/transfer_ names, such as another artist's drawings.
        zero_shot: a set with a class for every picture, classified by prompts while validating.
        zero_shot_limit: pictures of it, evenly spread.
        batch_size: pairs per device and step.
        val_batch_size: pictures per device in validation.
        keyword_captions: how often a caption is made of one to four words or names drawn from caption and keywords.
        val_keywords: keywords that a caption carries in validation; 0 = the caption alone.
        augmentation: of training pictures, in the terms of open_clip's AugmentationCfg: scale, ...;
            null: random crops of 80% to 100%; {} = none.
        backgrounds: transparent pictures lie on white, or in training on a random light colour.
        invalid: a picture or row that cannot be used is left out and counted, or stops the run.
        limit: use only the first so many pictures of train.
        cache_mb: opened pictures that are kept in memory, up to so many MB in every worker.
        seed: of order and augmentation; null: the global seed (`seed_everything`).
        num_workers: processes that open pictures; 0: the training process itself.
        pin_memory: page-locked batches; null: when training on a GPU.

    Raises:
        ValueError: no such file, no usable picture, or a setting that is wrong, by name.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        transfer: str | None = None,
        zero_shot: str | None = None,
        zero_shot_limit: int = 1000,
        batch_size: int = 128,
        val_batch_size: int | None = None,
        keyword_captions: float = 0.0,
        val_keywords: int = 0,
        augmentation: dict[str, Any] | None = None,
        backgrounds: Literal["white", "random"] = "white",
        invalid: Literal["skip", "error"] = "skip",
        limit: int | None = None,
        cache_mb: int = 512,
        seed: int | None = None,
        num_workers: int = 1,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.sources = {"train": train, "val": val, "transfer": transfer, "zero_shot": zero_shot}
        self.zero_shot_limit, self.limit = zero_shot_limit, limit
        self.batch_size, self.val_batch_size = batch_size, val_batch_size or batch_size
        self.keyword_captions, self.val_keywords = keyword_captions, val_keywords
        self.augmentation = {"scale": (0.8, 1.0)} if augmentation is None else augmentation
        self.backgrounds, self.invalid, self.cache_mb = backgrounds, invalid, cache_mb
        self.seed, self.num_workers, self.pin_memory = seed, num_workers, pin_memory
        for name in ("batch_size", "val_batch_size", "limit", "zero_shot_limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= keyword_captions <= 1:
            raise ValueError(f"data.keyword_captions={keyword_captions} is a share: use 0 to 1")
        self.preprocess: dict[str, Any] = {"size": 64}
        self.tokenize: Tokenize | None = None
        self._sets: dict[str, list[Picture]] = {}
        self._transforms: dict[bool, Any] = {}
        self._cache: dict[tuple[str, int], Any] = {}
        self._cached_bytes = 0

    masks_targets = False

    @property
    def place(self) -> str:
        """Where the data come from, for messages."""
        return f"data.train={self.sources['train']!r}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the training pictures' places and words."""
        digest = hashlib.sha256()
        for one in self.pictures("train"):
            name = one.source.name if isinstance(one.source, Path) else one.where.rpartition("/")[2]
            digest.update(repr((name, one.captions, one.keywords)).encode())
        return digest.hexdigest()

    def use_towers(self, tokenize: Tokenize | None, preprocess: dict[str, Any]) -> None:
        """Takes the model's tokenizer and how it sees pictures (open_clip's PreprocessCfg: size, mean, std,
        interpolation, resize_mode, fill_color); called by the task."""
        self.tokenize, self.preprocess = tokenize, preprocess
        self._transforms = {}

    def pictures(self, name: str) -> list[Picture]:
        """Pictures of "train", "val", "transfer" or "zero_shot"; none where it is not set.

        Raises:
            ValueError: nothing there that can be used.
        """
        if name not in self._sets:
            source = self.sources[name]
            if source is None:
                self._sets[name] = []
                return []
            limit = self.limit if name == "train" else None
            found = read_pictures(source, limit, "train" if name == "train" else "test")
            needs = "a class (column `label`, or one folder a class)" if name == "zero_shot" else "a caption"
            usable, wrong = [], []
            for one in found:
                has = one.label if name == "zero_shot" else (one.captions or one.keywords)
                missing = isinstance(one.source, Path) and not one.source.exists()
                if has and not missing:
                    usable.append(one)
                else:
                    wrong.append(f"{one.where}: " + (f"{one.source} does not exist" if missing else f"has not {needs}"))
            if wrong and self.invalid == "error":
                raise ValueError(f"{wrong[0]} (data.invalid: skip leaves such pictures out)")
            if not usable:
                raise ValueError(f"data.{name}={source}: not one picture can be used, the first: {wrong[0]}")
            if wrong:
                rank_zero_warn(f"{len(wrong)} of {len(found)} pictures of {name} left out, the first: {wrong[0]}")
            if name == "zero_shot" and len(usable) > self.zero_shot_limit:
                step = len(usable) / self.zero_shot_limit
                usable = [usable[int(number * step)] for number in range(self.zero_shot_limit)]
            self._sets[name] = usable
        return self._sets[name]

    @property
    def labels(self) -> list[str]:
        """Classes of the zero-shot set."""
        return sorted({one.label for one in self.pictures("zero_shot") if one.label is not None})

    def caption(self, one: Picture, generator: torch.Generator | None = None) -> str:
        """What is said of a picture: drawn anew in training, always the same in validation (no generator)."""
        if generator is None:
            return caption_of(one, self.val_keywords)
        names = list(one.captions) or list(one.keywords[:1])
        choose = random.Random(int(torch.randint(2**62, (), generator=generator)))
        if one.keywords and choose.random() < self.keyword_captions:
            words = list(dict.fromkeys([*names, *one.keywords]))
            return ", ".join(choose.sample(words, min(len(words), choose.randint(1, 4))))
        return choose.choice(names)

    def opened(self, name: str, index: int) -> Any:
        """A picture of a set as RGB, from memory when it is there; kept no larger than training needs.

        Raises:
            PictureError: it cannot be used.
        """
        if (name, index) in self._cache:
            return self._cache[name, index]
        one = self.pictures(name)[index]
        picture = one.open(self._background(name, index))
        largest = 2 * _side(self.preprocess["size"])
        if min(picture.size) > largest:
            picture.thumbnail((10**6, largest) if picture.width > picture.height else (largest, 10**6))
        size = 3 * picture.width * picture.height
        if self._cached_bytes + size <= self.cache_mb * 2**20 and self.backgrounds == "white":
            self._cache[name, index] = picture
            self._cached_bytes += size
        return picture

    def _background(self, name: str, index: int) -> tuple[int, int, int]:
        if name != "train" or self.backgrounds == "white":
            return (255, 255, 255)
        red, green, blue = (int(value) for value in torch.randint(160, 256, (3,)))  # seeded by the loader
        return red, green, blue

    def transform(self, training: bool) -> Any:
        """From a picture to (3, H, W), as open_clip's."""
        if training not in self._transforms:
            self._transforms[training] = pixel_transform(self.preprocess, self.augmentation if training else None)
        return self._transforms[training]

    def example(self, name: str, index: int, generator: torch.Generator | None) -> dict[str, Any]:
        """One picture with its caption or class.

        Raises:
            PictureError: it cannot be opened; ValueError with data.invalid: error.
        """
        one = self.pictures(name)[index]
        try:
            image = self.transform(generator is not None)(self.opened(name, index))
        except PictureError as error:
            if self.invalid == "error":
                raise ValueError(f"{one.where}: {error} (data.invalid: skip leaves such pictures out)") from None
            raise
        about = {"image": image, "index": index}
        if name == "zero_shot":
            return about | {"label": self.labels.index(one.label)}
        return about | {"caption": self.caption(one, generator)}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch; of no examples an empty one."""
        batch: dict[str, Any] = {"index": torch.tensor([one["index"] for one in examples], dtype=torch.int64)}
        if examples:
            batch["images"] = torch.stack([one["image"] for one in examples])
            if "label" in examples[0]:
                batch["labels"] = torch.tensor([one["label"] for one in examples])
            elif self.tokenize is not None:
                batch["texts"] = self.tokenize([one["caption"] for one in examples])
        return batch

    def train_dataloader(self) -> PictureTrainLoader:
        """The endless stream, from where the checkpoint left it or else from its beginning."""
        count, position = len(self.pictures("train")), self._position()
        self.transform(True)  # what is missing is told here, not in a worker
        self._train_loader = PictureTrainLoader(
            count,
            partial(self.example, "train"),
            self.collate,
            self.batch_size,
            self._stream_seed(),
            **position,
            **self._workers(),
        )
        return self._train_loader

    def val_dataloader(self) -> list[PictureEvalLoader]:
        """Loaders of the sets that there are, in the order of `validation_sets`."""
        return [
            PictureEvalLoader(
                len(self.pictures(name)),
                partial(self.example, name),
                self.collate,
                self.val_batch_size,
                **self._workers(),
            )
            for name in self.validation_sets
        ]

    def test_dataloader(self) -> list[PictureEvalLoader]:
        """As validation."""
        return self.val_dataloader()

    @property
    def validation_sets(self) -> list[str]:
        """Those of val, transfer and zero_shot that are set."""
        return [name for name in ("val", "transfer", "zero_shot") if self.sources[name] is not None]

    def first(self, count: int, augmented: bool = True) -> list[dict[str, Any]]:
        """The first examples of train, to look at: image, caption, index."""
        make = partial(self.example, "train")
        return list(first_examples(make, min(count, len(self.pictures("train"))), 0 if augmented else None))

    def _workers(self) -> dict[str, Any]:
        return {**self._placement(), "prefetch": False, "workers": self.num_workers}

    def __getstate__(self) -> dict[str, Any]:
        """Without opened pictures and the Trainer, for worker processes that are spawned."""
        return {**super().__getstate__(), "_cache": {}, "_cached_bytes": 0, "trainer": None}


def _side(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else max(size)
