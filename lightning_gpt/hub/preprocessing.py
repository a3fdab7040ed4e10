"""How pictures become pixels: open_clip's PreprocessCfg and transformers' preprocessor_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gpt.hub.huggingface import read_object
from lightning_gpt.nn.vision_tower import CLIP_MEAN, CLIP_STD

if TYPE_CHECKING:
    pass

RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""Pillow's numbers."""
RESCALE = 1 / 255


def preprocess_obstacles(preprocess: Mapping[str, Any]) -> list[str]:
    """Settings that transformers' CLIPImageProcessor has no counterpart for, as `preprocess.field=value`."""
    allowed = {"resize_mode": ("shortest", "squash"), "interpolation": tuple(RESAMPLE), "mode": ("RGB",)}
    return [f"preprocess.{name}={preprocess[name]}" for name in allowed if preprocess[name] not in allowed[name]]


def to_preprocessor(preprocess: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    """preprocessor_config.json, read by CLIPImageProcessor."""
    box = dict(zip(("height", "width"), image_size))
    shortest = preprocess["resize_mode"] == "shortest"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": min(image_size)} if shortest else box,
        "resample": RESAMPLE[preprocess["interpolation"]],
        "do_center_crop": shortest,
        "crop_size": box,
        "do_rescale": True,
        "rescale_factor": RESCALE,
        "do_normalize": True,
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
    }


def read_preprocessor(directory: Path, image_size: tuple[int, int]) -> dict[str, Any]:
    """What a directory says of PreprocessCfg: in preprocessor_config.json or, as transformers 5 writes it, in
    processor_config.json; {} without either.

    Args:
        directory: with config.json.
        image_size: height and width that the tower takes.

    Raises:
        ValueError: steps that PreprocessCfg has no counterpart for, or another size than the tower's.
    """
    whole, path = directory / "processor_config.json", directory / "preprocessor_config.json"
    theirs = read_object(whole).get("image_processor") if whole.exists() else None
    if theirs is not None:
        path = whole
    elif path.exists():
        theirs = read_object(path)
    else:
        return {}
    try:
        return _from_preprocessor(theirs, image_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _from_preprocessor(theirs: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    for step in ("do_resize", "do_rescale"):
        if not theirs.get(step, True):
            raise ValueError(f"{step}=false is not supported: pictures come in any size, as bytes")
    if abs(theirs.get("rescale_factor", RESCALE) - RESCALE) > 1e-6:
        raise ValueError(f"rescale_factor={theirs['rescale_factor']} is not supported: 1/255 is")
    names = {number: name for name, number in RESAMPLE.items()}
    resample = theirs.get("resample", RESAMPLE["bicubic"])
    if resample not in names:
        raise ValueError(f"resample={resample} is not supported: 2 (bilinear) and 3 (bicubic) are")
    size, crop = theirs.get("size", {"shortest_edge": 224}), theirs.get("crop_size", size_of(image_size))
    if isinstance(size, int):  # older files
        size = {"shortest_edge": size}
    shortest = "shortest_edge" in size
    cropped = theirs.get("do_center_crop", True)
    seen = size_of(crop) if cropped else None if shortest else size_of(size)
    if seen != size_of(image_size):
        raise ValueError(f"pictures of {seen} for a tower of {size_of(image_size)}: restore size and crop_size")
    if (size["shortest_edge"] if shortest else size_of(size)) != (min(image_size) if shortest else seen):
        raise ValueError(f"size={size} before a crop to {seen} is not supported: set size to what is cropped")
    normalize = theirs.get("do_normalize", True)
    return {
        "mean": tuple(theirs.get("image_mean") or CLIP_MEAN) if normalize else (0.0,) * 3,
        "std": tuple(theirs.get("image_std") or CLIP_STD) if normalize else (1.0,) * 3,
        "interpolation": names[resample],
        "resize_mode": "shortest" if shortest else "squash",
    }


def size_of(size: Any) -> dict[str, int]:
    """A size as their files spell it: one number, a pair or height and width."""
    if isinstance(size, Mapping):
        return {"height": size["height"], "width": size["width"]}
    height, width = (size, size) if isinstance(size, int) else size
    return {"height": height, "width": width}
