"""One way in for vision-language models: a directory, a run, a checkpoint or a name on the hub."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_gpt.hub.checkpoint import read_checkpoint
from lightning_gpt.hub.llava import is_llava, load_llava
from lightning_gpt.hub.llava_checkpoint import holds_llava, load_llava_checkpoint
from lightning_gpt.hub.opening import find_checkpoint, locate, open_model
from lightning_gpt.nn import GPT
from lightning_gpt.nn.vision_language import VisionLanguageModel
from lightning_gpt.text.tokenizer import Tokenizer


def is_vision_language(path_or_name: str | Path) -> bool:
    """Whether a path here holds a vision-language model."""
    path = _directory(Path(path_or_name))
    if not path.exists():
        return False
    if (path / "config.json").exists():
        return is_llava(path)
    try:
        return holds_llava(read_checkpoint(find_checkpoint(path) if path.is_dir() else path))
    except (OSError, ValueError):
        return False


def open_llava(
    path_or_name: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[VisionLanguageModel, Tokenizer | None]:
    """The model (in evaluation mode) and tokenizer of

    - a model directory of ours or of transformers (LLaVA),
    - a training checkpoint, or a run directory: the best checkpoint under it, else the last,
    - a name on the Hugging Face hub, such as llava-hf/llava-1.5-7b-hf.

    Args:
        path_or_name: which; an existing path is never taken for a name.
        dtype: of the parameters; None = as stored.
        device: where they go.

    Returns:
        The tokenizer is None when the directory has none.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what it is.
        ImportError: open_clip is not installed.
    """
    path = _directory(Path(path_or_name))
    if not path.exists():
        path = locate(path_or_name)
    if not (path / "config.json").exists():
        return load_llava_checkpoint(find_checkpoint(path) if path.is_dir() else path, dtype, device)
    if not is_llava(path):
        raise ValueError(
            f"{path_or_name} is no vision-language model, it cannot be shown pictures: name a LLaVA model, or leave "
            "the picture out"
        )
    return load_llava(path, dtype, device)


def open_any_model(
    path_or_name: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[GPT, Tokenizer | None, VisionLanguageModel | None]:
    """A language model as `open_model` gives it, or that of a vision-language model with the whole of it.

    Raises:
        FileNotFoundError, ValueError, ImportError: as open_model and open_llava.
    """
    path = path_or_name if Path(path_or_name).exists() else locate(path_or_name)
    if is_vision_language(path):
        vision, tokenizer = open_llava(path, dtype, device)
        return vision.net, tokenizer, vision
    return *open_model(path, dtype, device), None


def image_token(model: VisionLanguageModel, tokenizer: Tokenizer) -> str:
    """Text of the token that stands for a picture, such as <image>.

    Raises:
        ValueError: the tokenizer lacks it.
    """
    for name, index in tokenizer.special_tokens.items():
        if index == model.image_token_id:
            return name
    raise ValueError(
        f"the tokenizer has no special token of id {model.image_token_id}, which stands for a picture: restore the "
        "tokenizer.json that belongs to the model"
    )


def _directory(path: Path) -> Path:
    return path.parent if path.name in ("config.json", "model.safetensors") else path
