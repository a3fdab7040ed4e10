"""What retrieval reaches without a network: ridge regression from a picture's colours to a bag of words."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gpt.data.picture_files import Picture, caption_of, read_pictures
from lightning_gpt.data.pictures import PictureError
from lightning_gpt.objectives.retrieval import retrieval_metrics
from lightning_gpt.objectives.ridge import BagOfWords, colour_histograms, ridge

SIDE = 48
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def picture_features(pictures: Sequence[Picture]) -> tuple[Tensor, list[int]]:
    """Colour features (N, F) and which pictures they are of; those that cannot be opened are left out."""
    import numpy as np

    pixels, kept, wrong = [], [], []
    for number, one in enumerate(pictures):
        try:
            picture = one.open().resize((SIDE, SIDE))
        except PictureError as error:
            wrong.append(str(error))
            continue
        pixels.append(torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1))
        kept.append(number)
    if wrong:
        print(f"{len(wrong)} pictures left out, the first: {wrong[0]}", file=sys.stderr)
    if not kept:
        raise ValueError(f"not one picture can be opened, the first: {wrong[0]}")
    return colour_histograms(torch.stack(pixels)), kept


def said(one: Picture) -> str:
    """All words of a picture."""
    return ", ".join([*one.captions, *one.keywords])


def picture_baseline(train: str, val: str, val_keywords: int = 0) -> dict[str, float]:
    """Retrieval of val's captions and pictures by a ridge regression on train, its penalty chosen on a fifth of it.

    Captions are learnt with all their keywords, and tested with as many as CLIP's are.

    Args:
        train, val: as picture_files.read_pictures takes them.
        val_keywords: keywords that a caption carries in the test.

    Returns:
        metrics of objectives.retrieval; pictures, those of val; penalty.
    """
    learnt, tested = read_pictures(train), read_pictures(val)
    features, kept = picture_features(learnt)
    learnt = [learnt[number] for number in kept]
    words = BagOfWords([said(one) for one in learnt])
    targets = words([said(one) for one in learnt])
    chosen = torch.arange(len(learnt)) % 5 == 0
    names = words([caption_of(one, val_keywords) for one in learnt])
    scores = {}
    for strength in STRENGTHS:
        weights, mean = ridge(features[~chosen], targets[~chosen], strength)
        found = F.normalize((features[chosen] - mean) @ weights, dim=1)
        scores[strength] = retrieval_metrics(found, names[chosen])["r5"]
    best = max(scores, key=scores.__getitem__)
    weights, mean = ridge(features, targets, best)
    pixels, kept = picture_features(tested)
    captions = words([caption_of(tested[number], val_keywords) for number in kept])
    metrics = retrieval_metrics(F.normalize((pixels - mean) @ weights, dim=1), captions)
    return {**metrics, "pictures": len(kept), "penalty": best}
