"""The model directory, the one artifact after training: config.json, model.safetensors, tokenizer.json and friends.

Where transformers has a class that computes the same function, the directory is that class's format and
AutoModelForCausalLM.from_pretrained and AutoTokenizer.from_pretrained read it; otherwise config.json says
"model_type": "lightning_gpt" and the tensors keep our names.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_gpt.hub.family import export_tensors
from lightning_gpt.hub.huggingface import OWN_TYPE, family_of, load_huggingface, read_object
from lightning_gpt.hub.quantized_directory import can_hold, export_quantized, is_quantized
from lightning_gpt.nn import GPT
from lightning_gpt.text.roles import Roles
from lightning_gpt.text.tokenizer import Tokenizer

EXACT = (".scale", "_scale", ".SCB", ".absmax", ".quant_map")
"""Endings of tensors that go with whole numbers."""
TORCH_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def save_model(
    directory: str | Path,
    net: GPT,
    tokenizer: Tokenizer | None,
    generation: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    report: dict[str, Any] | None = None,
) -> str:
    """Writes a model directory as a whole: it appears complete or not at all. Quantized layers stay quantized.

    Args:
        directory: where; an older model directory there is replaced, anything else is refused.
        net: the network.
        tokenizer: its tokenizer; None leaves it out (weights for someone who has it).
        generation: fields of generation_config.json, such as temperature.
        dtype: of the stored weights; None = as they are.
        report: how the weights were quantized, for quantization.json beside them.

    Returns:
        model_type: "gpt2", "llama", "qwen3" when transformers reads it, else "lightning_gpt".

    Raises:
        ValueError: the directory holds something else, or the tokenizer has more ids than the network.
    """
    check_tokenizer(net, tokenizer)
    with whole_directory(Path(directory)) as temporary:
        if report is not None:
            write_json(temporary / "quantization.json", report)
        return _write(temporary, net, tokenizer, generation or {}, dtype)


def check_tokenizer(net: GPT, tokenizer: Tokenizer | None) -> None:
    """Raises ValueError for a tokenizer with more ids than the network."""
    if tokenizer is not None and tokenizer.vocab_size > net.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, but the network's vocab_size={net.config.vocab_size}: "
            "they do not belong together"
        )


def refuse_other_directory(directory: Path, marker: str = "config.json") -> None:
    """Raises ValueError for a place that holds something else than a model directory; for long work to ask first."""
    if directory.exists() and not (directory / marker).exists() and any(directory.iterdir()):
        raise ValueError(f"{directory} exists and is no model directory: choose another place")


@contextmanager
def whole_directory(directory: Path, marker: str = "config.json") -> Iterator[Path]:
    """An empty directory to write into, which takes the place of `directory` when all went well, and is gone otherwise.

    Args:
        directory: the place.
        marker: file by which an older model directory is known, which may be replaced.

    Raises:
        ValueError: something else than a model directory is there.
    """
    refuse_other_directory(directory, marker)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp lets only the owner in
        _replace(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_model(
    directory: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[GPT, Tokenizer | None]:
    """The network (in evaluation mode) and tokenizer of a directory that this program or transformers wrote.

    Args:
        directory: with config.json.
        dtype: of the parameters; None = as stored.
        device: where they go.

    Returns:
        The tokenizer is None when the directory has none.

    Raises:
        FileNotFoundError, ValueError: missing, damaged or unsupported, naming the file.
    """
    directory = Path(directory)
    if not (directory / "config.json").exists():
        raise FileNotFoundError(f"{directory} is no model directory: it has no config.json")
    net = load_huggingface(directory, dtype, device)
    return net, load_tokenizer(directory)


def load_tokenizer(directory: Path) -> Tokenizer | None:
    """tokenizer.json of a directory with its tokens' roles and its chat template; older files (vocab.json,
    tokenizer.model) are converted by transformers.

    Raises:
        ValueError: damaged, or of a kind that needs transformers where that is not installed.
    """
    path, template = directory / "tokenizer.json", directory / "chat_template.jinja"
    files = (directory / "tokenizer_config.json", directory / "generation_config.json")
    roles = Roles.from_files(
        *(read_object(file) if file.exists() else {} for file in files),
        template.read_text(encoding="utf-8") if template.exists() else None,
    )
    if path.exists():
        try:
            return Tokenizer.from_json(path.read_text(encoding="utf-8"), roles)
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {error}") from None
    old = next((name for name in ("vocab.json", "tokenizer.model") if (directory / name).exists()), None)
    if old is None:
        return None
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ValueError(
            f"{directory} has {old} instead of tokenizer.json: `pip install transformers` to have it converted"
        ) from None
    return Tokenizer.from_json(AutoTokenizer.from_pretrained(directory).backend_tokenizer.to_str(), roles)


def _write(
    directory: Path, net: GPT, tokenizer: Tokenizer | None, generation: dict[str, Any], dtype: torch.dtype | None
) -> str:
    config, state = net.config, net.state_dict()
    dtype = dtype or net.token_embedding.weight.dtype
    family, quantized = family_of(config), is_quantized(net)
    if quantized and not can_hold(family, config):
        family = None
    if family is not None:
        model_type, architecture, values = family.model_type, family.architecture, family.to_config(config)
        tensors = {} if quantized else export_tensors(family, config, state)
    else:
        model_type, architecture, values = OWN_TYPE, "GPT", {"vocab_size": config.vocab_size}
        tied = config.tie_embeddings
        tensors = {n: t.detach().cpu().contiguous() for n, t in state.items() if not (tied and n == "head.weight")}
    if quantized:
        tensors, about = export_quantized(net, family)
        values = values | {"quantization_config": about}
    special = special_token_ids(tokenizer)
    head = {"architectures": [architecture], "model_type": model_type}
    write_json(directory / "config.json", head | values | special | stored_type(dtype) | {OWN_TYPE: config.to_dict()})
    write_weights(directory, tensors, dtype)
    write_text_files(directory, tokenizer, config.block_size, generation)
    return model_type


def special_token_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """bos_token_id, eos_token_id and pad_token_id of config.json."""
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_id", None) for name in ("bos", "eos", "pad")}


def stored_type(dtype: torch.dtype) -> dict[str, str]:
    """The weights' type as config.json says it: transformers 4 reads torch_dtype, 5 reads dtype."""
    return {"dtype": TORCH_NAMES[dtype], "torch_dtype": TORCH_NAMES[dtype]}


def write_weights(directory: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """model.safetensors; whole numbers and their scales stay what they are."""
    stored = {
        name: tensor.to(dtype) if tensor.is_floating_point() and not name.endswith(EXACT) else tensor
        for name, tensor in tensors.items()
    }
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)  # safetensors lets only the owner in


def write_text_files(
    directory: Path, tokenizer: Tokenizer | None, block_size: int, generation: Mapping[str, Any]
) -> None:
    """generation_config.json, and with a tokenizer: tokenizer.json, tokenizer_config.json, chat_template.jinja."""
    special = {name: index for name, index in special_token_ids(tokenizer).items() if index is not None}
    if tokenizer is not None and len(tokenizer.end_ids) > 1:
        special["eos_token_id"] = sorted(tokenizer.end_ids)
    write_json(directory / "generation_config.json", special | dict(generation))
    if tokenizer is not None:
        (directory / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        write_json(directory / "tokenizer_config.json", _tokenizer_config(tokenizer, block_size))
        if tokenizer.roles.chat_template is not None:
            (directory / "chat_template.jinja").write_text(tokenizer.roles.chat_template, encoding="utf-8")


def _tokenizer_config(tokenizer: Tokenizer, block_size: int) -> dict[str, Any]:
    """What AutoTokenizer needs beside tokenizer.json: the generic class, and which token plays which part."""
    names = {index: name for name, index in tokenizer.special_tokens.items()}
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    for part in ("bos", "eos", "pad", "unk"):
        index = getattr(tokenizer, f"{part}_id", None)
        if index is not None:
            values[f"{part}_token"] = names[index]
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """One JSON object, for people to read."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace(new: Path, directory: Path) -> None:
    """Puts `new` in the place of `directory`; a crash in between leaves the old one under a visible name."""
    if not directory.exists():
        os.rename(new, directory)
        return
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    os.rename(directory, old)
    os.rename(new, directory)
    shutil.rmtree(old)
