"""One way in: a checkpoint, a model directory, a run directory or a name on the hub."""

import json
import re
from pathlib import Path

import torch

from lightning_gpt.hub.adapters import ADAPTER_CONFIG
from lightning_gpt.hub.checkpoint import SEES, load_checkpoint
from lightning_gpt.hub.model_directory import load_model
from lightning_gpt.nn import GPT
from lightning_gpt.text.tokenizer import Tokenizer

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model"]
"""Files of a model on the hub that are read."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def open_model(
    path_or_name: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[GPT, Tokenizer | None]:
    """The network (in evaluation mode) and tokenizer of

    - a checkpoint of `lightning-gpt fit`, a whole file or a sharded directory,
    - a model directory of ours or of transformers, or a *.gguf file,
    - a directory with an adapter in peft's format, which names its base,
    - a run directory: the best checkpoint under it, else the last,
    - a name on the Hugging Face hub, such as openai-community/gpt2.

    Args:
        path_or_name: which; an existing path is never taken for a name.
        dtype: of the parameters; None = as stored.
        device: where they go.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what it is.
    """
    path = Path(path_or_name)
    if path.is_dir():
        if (path / "config.json").exists():
            return _load(path, dtype, device)
        if (path / ADAPTER_CONFIG).exists():
            return _open_adapter(path, dtype, device)
        return load_checkpoint(find_checkpoint(path), dtype, device)
    if path.exists() or path.is_symlink():
        if path.name in ("config.json", "model.safetensors"):
            return _load(path.parent, dtype, device)
        if path.suffix == ".gguf":
            from lightning_gpt.hub.gguf import load_gguf

            return load_gguf(path, dtype, device)
        return load_checkpoint(path, dtype, device)
    return _load(locate(path_or_name), dtype, device)


def _load(path: Path, dtype: torch.dtype | None, device: torch.device | str) -> tuple[GPT, Tokenizer | None]:
    from lightning_gpt.hub.llava import is_llava

    if is_llava(path):
        raise ValueError(f"{path} {SEES}")
    return load_model(path, dtype, device)


def _open_adapter(path: Path, dtype: torch.dtype | None, device: torch.device | str) -> tuple[GPT, Tokenizer | None]:
    """The base that an adapter names, with it merged in."""
    from lightning_gpt.hub.adapters import load_adapter, merge_adapters

    base = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    try:
        net, tokenizer = open_model(base, dtype, device)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is an adapter of {base}: {error}") from None
    load_adapter(path, net)
    return merge_adapters(net).eval(), tokenizer


def find_checkpoint(run: Path) -> Path:
    """The newest best*.ckpt under a run directory, else the newest last*.ckpt, else the newest of all; a directory
    that is itself a sharded checkpoint is the one that is meant.

    Raises:
        FileNotFoundError: none.
    """
    if (run / ".metadata").exists() or (run / "meta.pt").exists():
        return run
    found = sorted(run.rglob("*.ckpt"), key=lambda path: path.lstat().st_mtime, reverse=True)
    if not found:
        raise FileNotFoundError(f"{run} holds neither config.json (a model directory) nor a *.ckpt (a run directory)")
    for start in ("best", "last"):
        for path in found:
            if path.name.startswith(start):
                return path
    return found[0]


def locate(name: str | Path) -> Path:
    """Directory with the files of a hub name, downloaded when they are not in the local cache.

    Raises:
        FileNotFoundError: neither a path nor a reachable name.
    """
    text = str(name)
    if not HUB_NAME.fullmatch(text) or text.endswith((".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".gguf")):
        raise FileNotFoundError(f"{text} does not exist")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        return Path(snapshot_download(text, allow_patterns=PATTERNS))
    except Exception as error:
        why = type(error).__name__
        raise FileNotFoundError(
            f"{text} is neither a file or directory here nor a model that the Hugging Face hub gave ({why})"
        ) from None
