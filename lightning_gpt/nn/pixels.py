"""Pictures to the numbers that towers take: open_clip's transforms. Legend: N pictures, H x W pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

INSTALL = "pictures need `pip install 'lightning_gpt[vision]'`"


def pixel_transform(
    preprocess: Mapping[str, Any], augmentation: Mapping[str, Any] | None = None
) -> Callable[[Image.Image], Tensor]:
    """From an RGB picture of any size to (3, H, W) float32.

    Args:
        preprocess: PreprocessCfg's fields (size, mean, std, interpolation, resize_mode, fill_color), such as
            VisionTower.preprocess.
        augmentation: of training, AugmentationCfg's fields (scale, ratio, color_jitter, ...); None or empty = none.

    Raises:
        ImportError: open_clip is not installed.
        ValueError: a setting that open_clip does not know.
    """
    try:
        from open_clip.transform import PreprocessCfg, image_transform_v2
    except ImportError as error:
        raise ImportError(INSTALL) from error
    try:
        settings = PreprocessCfg(**preprocess)
        return image_transform_v2(settings, is_train=bool(augmentation), aug_cfg=dict(augmentation or {}) or None)
    except TypeError as error:
        raise ValueError(f"data.augmentation or model.preprocess: {error}") from error


def to_pixels(pictures: Sequence[Image.Image], preprocess: Mapping[str, Any]) -> Tensor:
    """(N, 3, H, W) float32: pictures as a tower takes them, without augmentation.

    Args:
        pictures: RGB, at least one, of any sizes.
        preprocess: as pixel_transform's.
    """
    transform = pixel_transform(preprocess)
    return torch.stack([transform(picture) for picture in pictures])
