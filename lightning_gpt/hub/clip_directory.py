"""CLIP models as directories in open_clip's own format, as training checkpoints, and by open_clip's names.

A directory holds open_clip_config.json (both towers, how pictures are prepared) and open_clip_model.safetensors:
open_clip.create_model_from_pretrained("local-dir:DIR") reads it. A tokenizer of ours lies beside as tokenizer.json.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_gpt.hub.adapters import base_fingerprint
from lightning_gpt.hub.checkpoint import CHECKPOINT_KEY, read_checkpoint
from lightning_gpt.hub.model_directory import whole_directory, write_json
from lightning_gpt.nn.clip import INSTALL, build_clip
from lightning_gpt.nn.pixels import to_pixels
from lightning_gpt.text.caption_tokenizer import CaptionTokenizer, ClipBPE, OwnCaptions
from lightning_gpt.text.tokenizer import Tokenizer

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


@dataclass
class ClipModel:
    """Towers with what is needed to use them."""

    net: nn.Module
    config: dict[str, Any]
    """As nn.clip.build_clip takes it."""
    preprocess: dict[str, Any]
    """How pictures are prepared: open_clip's PreprocessCfg."""
    tokenizer: Tokenizer | None = None
    """None: CLIP's own byte-pair encoding."""
    tokenize: CaptionTokenizer = field(init=False)

    def __post_init__(self) -> None:
        self.tokenize = caption_tokenizer(self.config, self.tokenizer)

    @property
    def fingerprint(self) -> str:
        """Tells weights and the preparation of pictures apart."""
        return hashlib.sha256(f"{base_fingerprint(self.net)} {self.preprocess}".encode()).hexdigest()

    @torch.no_grad()
    def embed_pictures(self, pictures: list[Any]) -> Tensor:
        """(N, D) unit vectors of RGB pictures."""
        pixels = to_pixels(pictures, self.preprocess).to(self.net.logit_scale.device)
        return self.net.encode_image(pixels, normalize=True).float().cpu()

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """(N, D) unit vectors of texts."""
        ids = self.tokenize(texts).to(self.net.logit_scale.device)
        return self.net.encode_text(ids, normalize=True).float().cpu()


def caption_tokenizer(config: dict[str, Any], tokenizer: Tokenizer | None) -> CaptionTokenizer:
    """What turns captions into rows for the text tower of a configuration."""
    text = config["text_cfg"]
    if tokenizer is None:
        return ClipBPE(text.get("context_length", 77))
    return OwnCaptions(tokenizer, text.get("context_length", 77), text.get("pad_id", 0))


def is_clip(path: str | Path) -> bool:
    """Whether a directory, run or checkpoint holds CLIP towers."""
    path = Path(path)
    if (path / CONFIG_FILE).exists():
        return True
    try:
        return "clip" in _about(path)
    except (OSError, ValueError):
        return False


def save_clip(directory: str | Path, model: ClipModel) -> None:
    """Writes a directory as a whole: it appears complete or not at all.

    Raises:
        ValueError: something else is there.
    """
    about = {"model_cfg": {**model.config, "custom_text": True}, "preprocess_cfg": model.preprocess}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.net.state_dict().items()}
    with whole_directory(Path(directory), CONFIG_FILE) as temporary:
        write_json(temporary / CONFIG_FILE, about)
        save_file(tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        (temporary / WEIGHTS_FILE).chmod(0o644)  # safetensors lets only the owner in
        if model.tokenizer is not None:
            (temporary / "tokenizer.json").write_text(model.tokenizer.to_json(), encoding="utf-8")


def open_clip_model(path_or_name: str | Path, device: torch.device | str = "cpu") -> ClipModel:
    """Towers, in evaluation mode, of

    - a directory in open_clip's format,
    - a training checkpoint, or a run directory (its best checkpoint, else the last),
    - a name of open_clip with a tag of its weights, "ViT-B-32:laion2b_s34b_b79k", where its hub is reached.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what it is.
        ImportError: open_clip is not installed.
    """
    path = Path(path_or_name)
    if (path / CONFIG_FILE).exists():
        about = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
        tokens = path / "tokenizer.json"
        tokenizer = Tokenizer.from_json(tokens.read_text(encoding="utf-8")) if tokens.exists() else None
        if not (path / WEIGHTS_FILE).exists():
            raise FileNotFoundError(f"{path} has {CONFIG_FILE} but no {WEIGHTS_FILE}")
        state = load_file(path / WEIGHTS_FILE)
        return _opened(str(path), about["model_cfg"], about.get("preprocess_cfg", {}), tokenizer, state, device)
    if path.exists():
        about = _about(path)
        if "clip" not in about:
            raise ValueError(
                f"{path} holds no CLIP towers: train some with `lightning-gpt fit -c configs/clip/emoji.yaml`"
            )
        content = read_checkpoint(_checkpoint(path))
        state = {k.removeprefix("net."): v for k, v in content["state_dict"].items() if k.startswith("net.")}
        tokenizer = Tokenizer.from_json(about["tokenizer"]) if about.get("tokenizer") else None
        return _opened(str(path), about["clip"], about["preprocess"], tokenizer, state, device)
    return pretrained_clip(str(path_or_name), device)


def pretrained_clip(name: str, device: torch.device | str = "cpu") -> ClipModel:
    """A published model of open_clip, "architecture:tag" or "architecture" with fresh weights.

    Raises:
        FileNotFoundError: unknown, or its hub cannot be reached.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(INSTALL) from error
    architecture, _, tag = name.partition(":")
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise FileNotFoundError(
            f"{name} is neither a file or directory here nor an architecture of open_clip (ViT-B-32, ViT-L-14, ...)"
        )
    try:
        net = open_clip.create_model(architecture, pretrained=tag or None, device=device, force_custom_text=True)
    except Exception as error:  # the hub's client raises its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise FileNotFoundError(f"{name}: open_clip does not give its weights: {reason}") from None
    net.output_dict = True
    preprocess = net.visual.preprocess_cfg
    preprocess = asdict(preprocess) if is_dataclass(preprocess) else dict(preprocess)
    config["quick_gelu"] = bool(config.get("quick_gelu") or tag == "openai")
    config.pop("custom_text", None)
    return ClipModel(net.eval(), config, preprocess)


def _opened(where: str, config: dict, preprocess: dict, tokenizer: Any, state: dict, device: Any) -> ClipModel:
    net = build_clip({**config, **({"init_logit_bias": 0.0} if "logit_bias" in state else {})})
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{where} is damaged: {str(error).splitlines()[1].strip()}") from None
    return ClipModel(net.eval().to(device), config, preprocess, tokenizer)


def _checkpoint(path: Path) -> Path:
    from lightning_gpt.hub.opening import find_checkpoint

    return find_checkpoint(path) if path.is_dir() else path


def _about(path: Path) -> dict[str, Any]:
    about = read_checkpoint(_checkpoint(path)).get(CHECKPOINT_KEY)
    return about if isinstance(about, dict) else {}
