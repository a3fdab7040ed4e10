"""A retrieval baseline that learns no network: ridge regression from a picture's colours to the words said of it.

Legend: N pictures, F picture features, V words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

BINS, CELLS = 4, 3
"""Levels of each colour, and parts of a picture's side that are looked at by themselves."""


def colour_histograms(pixels_NCHW: Tensor) -> Tensor:
    """(N, F) float32: share of each of 4 x 4 x 4 colours in the whole picture and in its 3 x 3 parts, as square roots.

    Args:
        pixels_NCHW: red, green, blue from 0 to 1.
    """
    levels = (pixels_NCHW.clamp(0, 1) * BINS).long().clamp(max=BINS - 1)
    colours_NHW = (levels[:, 0] * BINS + levels[:, 1]) * BINS + levels[:, 2]
    parts = [colours_NHW]
    for rows in colours_NHW.tensor_split(CELLS, dim=1):
        parts += list(rows.tensor_split(CELLS, dim=2))
    features = []
    for part in parts:
        flat = part.flatten(1)
        counts = torch.zeros(len(flat), BINS**3).scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32))
        features.append((counts / flat.shape[1]).sqrt())
    return torch.cat(features, dim=1)


def words(text: str) -> list[str]:
    """Lower-case words of a caption."""
    return re.findall(r"[a-z0-9]+", text.lower())


class BagOfWords:
    """Captions as vectors: one entry a word that the training captions have, weighted by its rarity (tf-idf).

    Args:
        captions: of training.
    """

    def __init__(self, captions: Sequence[str]) -> None:
        seen: dict[str, int] = {}
        for caption in captions:
            for word in set(words(caption)):
                seen[word] = seen.get(word, 0) + 1
        self.index = {word: number for number, word in enumerate(sorted(seen))}
        self.weights = torch.tensor([len(captions) / seen[word] for word in sorted(seen)]).log() + 1

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(N, V) unit vectors; zero where no word is known."""
        rows = torch.zeros(len(captions), len(self.index))
        for row, caption in enumerate(captions):
            for word in words(caption):
                if word in self.index:
                    rows[row, self.index[word]] = self.weights[self.index[word]]
        return F.normalize(rows, dim=1)


def ridge(features_NF: Tensor, targets_NV: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Weights (F, V) and the features' mean of a least-squares fit with a penalty on the weights.

    Args:
        features_NF, targets_NV: of training.
        strength: of the penalty, relative to the mean squared feature.
    """
    mean = features_NF.mean(0)
    centred = (features_NF - mean).double()
    gram = centred.T @ centred
    penalty = strength * gram.diagonal().mean()
    gram += penalty * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram, centred.T @ (targets_NV - targets_NV.mean(0)).double())
    return weights.float(), mean
