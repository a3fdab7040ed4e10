"""Lightning checkpoints of ours as networks: `checkpoint["lightning_gpt"]` describes what `state_dict` holds."""

import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lightning_gpt.hub.integrity import DamagedError, read_manifest, verify, way_out
from lightning_gpt.hub.network import network_from_state
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.text.roles import Roles
from lightning_gpt.text.tokenizer import Tokenizer

CHECKPOINT_KEY = "lightning_gpt"
NETWORK_PREFIX = "net."
FORMAT = 1
SEES = (
    "is a vision-language model (LLaVA), no language model: `lightning-gpt chat --image` and `generate --image` read "
    "it, import and export copy it"
)


class _Placeholder:
    """Stands in for Python objects of a checkpoint (settings, say): none is imported or run to read weights."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dictionary of a checkpoint, whole file or sharded directory; tensors stay on disk until they are used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, or not a checkpoint; the message says what the file is, and of a damaged one which other
            checkpoint of its run is whole.
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} points to {path.readlink()}, which is gone{way_out(path)}")
    if path.is_dir():
        from lightning_gpt.hub.sharded_checkpoint import META_FILE, is_sharded, read_sharded  # 0.6 s of imports

        if not is_sharded(path):
            raise ValueError(
                f"{path} is a directory, and no sharded checkpoint: it holds neither .metadata nor meta.pt"
            )
        read_manifest(path)
        return read_sharded(path, _read_file(path / META_FILE))
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return _read_file(path)


def _read_file(path: Path) -> dict[str, Any]:
    """What torch.save wrote, with tensors on disk and without importing or running anything that it names."""
    if not path.exists():
        raise DamagedError(f"{path} is missing: the checkpoint is incomplete{way_out(path.parent)}")
    with open(path, "rb") as file:
        start = file.read(512)
    if not start.startswith(b"PK\x03\x04"):
        raise ValueError(f"{path} is no checkpoint: it {_what(start)}")
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stubs = [(type("Placeholder", (_Placeholder,), {}), name) for name in foreign]
        with torch.serialization.safe_globals(stubs):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:120]
        raise DamagedError(f"{path} is truncated or damaged ({reason}){way_out(path)}") from None
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0]
        raise ValueError(f"{path} holds Python objects that cannot be read safely ({reason[:120]})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint of lightning_gpt")
    return content


def verify_checkpoint(path: str | Path) -> None:
    """Reads all of a checkpoint through.

    Raises:
        DamagedError: it is not what was written; the message names a checkpoint of the run that is.
    """
    try:
        verify(path)
    except DamagedError as error:
        raise DamagedError(f"{error}{way_out(path)}") from None


def load_checkpoint(
    path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[GPT, Tokenizer]:
    """The network (in evaluation mode) and tokenizer of a training checkpoint.

    Raises:
        FileNotFoundError, ValueError: as read_checkpoint, damaged, another program's checkpoint, or a vision-language
            model.
    """
    content = read_checkpoint(path)
    verify_checkpoint(path)
    about = content.get(CHECKPOINT_KEY)
    if not isinstance(about, dict) or "model" not in about:
        raise ValueError(f"{path} {_whose(content)}, not a checkpoint of lightning_gpt")
    if about.get("format", FORMAT) > FORMAT:
        raise ValueError(f"{path} has checkpoint format {about['format']}, this version reads up to {FORMAT}: upgrade")
    if "llava" in about:
        raise ValueError(f"{path} {SEES}")
    state = _network_state(content)
    try:
        config = GPTConfig.from_dict(about["model"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    tokenizer = Tokenizer.from_json(about["tokenizer"], roles_from(about))
    if "lora" in about:
        from lightning_gpt.hub.adapters import merge_adapters

        return merge_adapters(_adapted(path, about, state, dtype, device)).eval(), tokenizer
    return network_from_state(config, state, str(path), dtype, device), tokenizer


def about_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a checkpoint keeps of its tokenizer, its tokens' roles and chat template included."""
    return {"tokenizer": tokenizer.to_json(), "roles": asdict(tokenizer.roles)}


def roles_from(about: dict[str, Any]) -> Roles:
    """The roles in a checkpoint; files written before they were kept have none."""
    roles = about.get("roles") or {}
    return Roles(**(roles | {"end_ids": tuple(roles.get("end_ids", ()))}))


def _network_state(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The network's weights in a checkpoint, by its own names."""
    return {
        name.removeprefix(NETWORK_PREFIX).replace("_orig_mod.", ""): tensor
        for name, tensor in content["state_dict"].items()
        if name.startswith(NETWORK_PREFIX)
    }


def _adapted(path: str | Path, about: dict[str, Any], state: dict[str, torch.Tensor], dtype: Any, device: Any) -> GPT:
    """A checkpoint that holds adapters alone: its base, with them in it."""
    from lightning_gpt.hub.opening import open_model

    try:
        net, _ = open_model(about["base"], dtype, device)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} holds adapters of {about['base']}, which is not there: bring it back, it holds the other weights"
        ) from None
    return with_adapters(net, about, state, path)


def with_adapters(net: GPT, about: dict[str, Any], state: dict[str, torch.Tensor], path: str | Path) -> GPT:
    """A base, checked to be the right one, with a checkpoint's adapters in it.

    Args:
        net: the base; changed in place.
        about: what the checkpoint says of itself.
        state: the network's weights in it, by its own names.
        path: for messages.

    Raises:
        ValueError: another base, or weights that belong to none of its layers.
    """
    from lightning_gpt.hub.adapters import LoRA, add_adapters, base_fingerprint

    if base_fingerprint(net) != about["base_fingerprint"]:
        raise ValueError(f"{path} holds adapters of another {about['base']} than the one that is there now")
    add_adapters(net, LoRA.of(about["lora"]))
    missing = net.load_state_dict(state, strict=False)
    if missing.unexpected_keys:
        raise ValueError(f"{path} has unexpected weights {', '.join(missing.unexpected_keys[:4])}")
    return net.eval()


def export_adapter(path: str | Path, directory: str | Path) -> None:
    """Writes the adapters of a training checkpoint in peft's format.

    Raises:
        ValueError: the checkpoint holds whole weights.
    """
    from lightning_gpt.hub.adapters import LoRA, save_adapter

    content = read_checkpoint(path)
    about = content.get(CHECKPOINT_KEY, {})
    if "lora" not in about:
        raise ValueError(f"{path} holds whole weights, no adapter: export it without --adapter")
    net = _adapted(path, about, _network_state(content), None, "cpu")
    save_adapter(directory, net, LoRA.of(about["lora"]), about["base"], about["base_fingerprint"])


def _what(start: bytes) -> str:
    """What a file that is no zip archive seems to be."""
    if not start:
        return "is empty"
    if start.startswith(b"GGUF"):
        return "is a GGUF file: import the unquantized Hugging Face directory instead"
    if start[8:10] in (b'{"', b"{ ") or start[8:9] == b"{":
        return "is a safetensors file: name the directory that holds it and its config.json"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer: run `git lfs pull` to have the file itself"
    if start.lstrip()[:1] in (b"{", b"<"):
        return "is text"
    if start.startswith(b"\x80"):
        return "is a pickle or a checkpoint of PyTorch before 1.6: such files can run code and are not loaded"
    return "is not a file that torch.save wrote"


def _whose(content: dict[str, Any]) -> str:
    """Who seems to have written a checkpoint."""
    if "model_args" in content:
        return "is a nanoGPT checkpoint"
    if "pytorch-lightning_version" in content:
        return "is a Lightning checkpoint of another program"
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return "is a bare state_dict without configuration"
    return f"is a torch file with the keys {', '.join(map(str, list(content)[:4]))}"
