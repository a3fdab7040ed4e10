"""One way in for vision-language models: a directory, a run, a checkpoint or a name on the hub."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_gpt.hub.checkpoint import read_checkpoint
from lightning_gpt.hub.llava import is_llava, load_llava
from lightning_gpt.hub.llava_checkpoint import holds_llava, load_llava_checkpoint
from lightning_gpt.hub.opening import find_checkpoint, locate
from lightning_gpt.nn.vision_language import VisionLanguageModel
from lightning_gpt.text.tokenizer import Tokenizer


def is_vision_language(path_or_name: str | Path) -> bool:
    """Whether a path here holds a vision-language model."""
    path = Path(path_or_name)
    if not path.exists():
        return False
    if path.is_dir() and (path / "config.json").exists():
        return is_llava(path)
    try:
        return holds_llava(read_checkpoint(find_checkpoint(path) if path.is_dir() else path))
    except (OSError, ValueError):
        return False


def open_llava(
    path_or_name: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[VisionLanguageModel, Tokenizer | None]:
    """The model (in evaluation mode) and tokenizer."""
    path = Path(path_or_name)
    if path.is_dir() and not (path / "config.json").exists():
        return load_llava_checkpoint(find_checkpoint(path), dtype, device)
    if path.is_file():
        return load_llava_checkpoint(path, dtype, device)
    return load_llava(path if path.exists() else locate(path_or_name), dtype, device)
