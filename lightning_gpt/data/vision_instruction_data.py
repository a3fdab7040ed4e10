"""VisionInstructionData: conversations about pictures, for vision-language models."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_gpt.data.pictures import PictureError, open_picture
from lightning_gpt.data.row_data import RowData, shifted
from lightning_gpt.data.row_shapes import RowEncoder
from lightning_gpt.nn.pixels import pixel_transform
from lightning_gpt.text.chat import ChatTemplate
from lightning_gpt.text.tokenizer import Tokenizer

IMAGE_TOKEN = "<image>"
"""Stands for one picture in a message."""


@dataclass(frozen=True)
class Shown:
    """A conversation as tokens, with its pictures."""

    ids: list[int]
    spoken: list[bool]
    images: tuple[Path | bytes, ...]
    kind: str
    answer: str
    """The last one, in words."""


class VisionInstructionData(RowData):
    """Rows of `messages` (or `prompt, completion`) with `image` or `images`: files beside the table, or bytes.

    A message says <image> where a picture stands, once for each; here it becomes as many image tokens as the model's
    tower gives features. A column `kind` groups rows in validation. Batches: {"input_ids", "targets"} (B, T), "kinds"
    (B names), "answers" (B texts), and where there are pictures "pictures", their names in reading order, and "pixels",
    name -> (3, H, W), of those whose features the task has not kept (`known`). Rows without pictures cost no pass
    through the tower. Of a row that is too long the end is cut; one whose pictures do not fit is
    an invalid row.

    Args:
        train: see RowData, as are all settings that are not named here.
    """

    def __init__(self, train: str, **kwargs: Any) -> None:
        super().__init__(train, **kwargs)
        self.save_hyperparameters(logger=False)
        self.patches, self.image_token_id = 0, -1
        self.preprocess: dict[str, Any] = {}
        self.known: Mapping[str, Any] = {}
        """Pictures that need not be opened; the task's."""
        self._transform: Any = None
        self._folders: dict[str, Path] = {}
        self._told = 0

    def use_tower(self, tokenizer: Tokenizer, patches: int, preprocess: dict[str, Any]) -> None:
        """Takes what the model's tower wants; called by the task after use_model.

        Args:
            tokenizer: with <image>.
            patches: image tokens of a picture.
            preprocess: open_clip's PreprocessCfg.
        """
        self._tokenizer, self._encoder = tokenizer, None
        self.patches, self.preprocess, self._transform = patches, preprocess, None
        self.image_token_id = tokenizer.special_tokens[IMAGE_TOKEN]

    @property
    def encoder(self) -> RowEncoder:
        """How rows become tokens; messages may say <image>."""
        if self._encoder is None:
            template = ChatTemplate(self.tokenizer, self.chat_template, IMAGE_TOKEN)
            self._encoder = RowEncoder(template, self.as_chat)
        return self._encoder

    def encode(self, encoder: RowEncoder, row: Mapping[str, Any]) -> Shown:
        """Tokens, pictures, kind and answer of a row.

        Raises:
            ValueError: pictures and <image> do not match, a file is missing, nothing is left to learn from.
        """
        images = self._images(row)
        marked = encoder.text(row)
        said = sum(token == self.image_token_id for token in marked.ids)
        if said != len(images):
            raise ValueError(f"the messages say {IMAGE_TOKEN} {said} times, the row has {len(images)} pictures")
        ids, spoken = [], []
        for token, speaks in zip(marked.ids, marked.spoken, strict=True):
            times = self.patches if token == self.image_token_id else 1
            ids += [token] * times
            spoken += [speaks] * times
        limit = self.block_size + 1
        if len(ids) > limit:
            ids, spoken = ids[:limit], spoken[:limit]
            self.shortened["answers"] += 1
            if sum(token == self.image_token_id for token in ids) != said * self.patches:
                raise ValueError(
                    f"its pictures take {said * self.patches} tokens and do not fit into max_length={self.block_size}"
                )
        if not any(spoken[1:]):
            raise ValueError(
                f"no token is left to learn from within max_length={self.block_size}: raise it or shorten the row"
            )
        turns = row.get("messages") or [{"role": "assistant", "content": row.get("completion", "")}]
        answer = next((str(turn["content"]) for turn in reversed(turns) if turn["role"] == "assistant"), "")
        return Shown(ids, spoken, images, str(row.get("kind") or "all"), answer)

    def rows(self, split: str) -> list[tuple[str, dict[str, Any]]]:
        """Rows with their places; their pictures' paths become whole ones."""
        first = not self._rows
        found = super().rows(split)
        if first:
            for name, source in (("train", self.train), ("val", self.val or self.train)):
                path = Path(source).expanduser()
                folder = path if path.is_dir() else path.parent
                for _, row in self._rows[name]:
                    row["_folder"] = folder
        return found

    def _images(self, row: Mapping[str, Any]) -> tuple[Path | bytes, ...]:
        given = row.get("images") or ([row["image"]] if row.get("image") else [])
        images: list[Path | bytes] = []
        for one in given:
            if isinstance(one, Mapping):
                one = one.get("bytes") or one.get("path")
            if isinstance(one, str):
                one = Path(row["_folder"]) / one
                if not one.exists():
                    raise ValueError(f"the picture {one} does not exist")
            if not isinstance(one, Path | bytes):
                raise ValueError(f"image must be a path or a file's bytes, it is {type(one).__name__}")
            images.append(one)
        return tuple(images)

    def pixels(self, image: Path | bytes) -> torch.Tensor:
        """(3, H, W) as the tower wants it.

        Raises:
            PictureError: it cannot be opened.
        """
        if self._transform is None:
            self._transform = pixel_transform(self.preprocess)
        return self._transform(open_picture(image))

    def collate(self, examples: list[Shown]) -> dict[str, Any]:
        """A batch; rows with a picture that cannot be opened are left out and counted, or stop the run
        (data.invalid)."""
        usable: list[Shown] = []
        pictures: list[str] = []
        pixels: dict[str, torch.Tensor] = {}
        for one in examples:
            names = [name_of(image) for image in one.images]
            try:
                opened = {
                    name: self.pixels(image)
                    for name, image in zip(names, one.images)
                    if name not in self.known and name not in pixels
                }
            except PictureError as error:
                if self.invalid == "error":
                    raise ValueError(f"{error} (data.invalid: skip leaves such rows out)") from None
                self._told += 1
                if self._told & (self._told - 1) == 0:  # the 1st, 2nd, 4th, ...
                    rank_zero_warn(f"rows left out for their pictures so far: {self._told}, the last: {error}")
                continue
            usable.append(one)
            pictures += names
            pixels |= opened
        batch: dict[str, Any] = shifted([one.ids for one in usable], [one.spoken for one in usable], self.block_size)
        batch["kinds"], batch["answers"] = [one.kind for one in usable], [one.answer for one in usable]
        if pictures:
            batch["pictures"], batch["pixels"] = pictures, pixels
        return batch

    def majority(self) -> dict[str, float]:
        """For each kind of validation rows: how often its commonest training answer is right; of a kind that is asked
        only within talks of other kinds, its commonest answer in validation, the best that guessing can do."""
        learnt: dict[str, Counter[str]] = {}
        for one in self.examples("train"):
            learnt.setdefault(one.kind, Counter())[one.answer] += 1
        asked: dict[str, Counter[str]] = {}
        for one in self.examples("val"):
            asked.setdefault(one.kind, Counter())[one.answer] += 1
        found = {}
        for kind, answers in asked.items():
            guess = learnt.get(kind, answers).most_common(1)[0][0]
            found[kind] = answers[guess] / answers.total()
        return found


def name_of(image: Path | bytes) -> str:
    """Tells pictures apart: the file, or a digest of the bytes."""
    return str(image) if isinstance(image, Path) else hashlib.sha256(image).hexdigest()
