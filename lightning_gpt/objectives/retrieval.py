"""How well pictures find their texts and texts their pictures. Legend: N pictures, M texts, D features."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1024
"""Queries whose similarities are in memory at a time."""


def ranks(queries_ND: Tensor, targets_MD: Tensor, right_N: Tensor) -> Tensor:
    """(N,) float: place of each query's target among all, 1 = first.

    Targets that are as near as the right one count half: where all features are equal, a model is as good as chance,
    not perfect.

    Args:
        queries_ND, targets_MD: unit vectors.
        right_N: int64, which target belongs to each query.
    """
    found = []
    for queries, right in zip(queries_ND.split(CHUNK), right_N.split(CHUNK)):
        similar = queries.float() @ targets_MD.float().T
        own = similar.gather(1, right[:, None])
        found.append((similar > own).sum(1) + ((similar == own).sum(1) - 1) / 2 + 1)
    return torch.cat(found) if found else torch.zeros(0)


def retrieval_metrics(images_ND: Tensor, texts_ND: Tensor, at: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """R@k and median rank of both directions, and their mean as r<k>.

    R@k is the share of queries whose own partner is among the k nearest (Karpathy and Fei-Fei, 2015); by chance k / N.

    Args:
        images_ND, texts_ND: unit vectors; row n of both belong together.
        at: the k.
    """
    own = torch.arange(len(images_ND), device=images_ND.device)
    metrics: dict[str, float] = {}
    for name, queries, targets in (
        ("image_to_text", images_ND, texts_ND),
        ("text_to_image", texts_ND, images_ND),
    ):
        places = ranks(queries, targets, own)
        for k in at:
            metrics[f"{name}_r{k}"] = (places <= k).float().mean().item()
        metrics[f"{name}_median_rank"] = places.median().item()
    for k in at:
        metrics[f"r{k}"] = (metrics[f"image_to_text_r{k}"] + metrics[f"text_to_image_r{k}"]) / 2
    return metrics


def classification_metrics(images_ND: Tensor, classes_CD: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Zero-shot accuracy: top1, and top5 where there are more than five classes; and the mean over classes of top1,
    which a set of unequal classes does not flatter."""
    places = ranks(images_ND, classes_CD, labels_N)
    right = (places <= 1).float()
    metrics = {"top1": right.mean().item()}
    if len(classes_CD) > 5:
        metrics["top5"] = (places <= 5).float().mean().item()
    present = labels_N.unique()
    metrics["class_mean_top1"] = torch.stack([right[labels_N == one].mean() for one in present]).mean().item()
    return metrics
