"""Directories in the format of Hugging Face transformers: config.json and (sharded) safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lightning_gpt.hub.bitsandbytes_layers import make_layer
from lightning_gpt.hub.family import Family, import_tensors
from lightning_gpt.hub.gpt2 import GPT2
from lightning_gpt.hub.llama import LLAMA_FAMILIES
from lightning_gpt.hub.network import network_from_state
from lightning_gpt.hub.quantized_directory import import_quantized
from lightning_gpt.nn import GPT, GPTConfig

FAMILIES: dict[str, Family] = {family.model_type: family for family in (GPT2, *LLAMA_FAMILIES)}
OWN_TYPE = "lightning_gpt"
"""model_type of networks that no class of transformers can hold, and the key of config.json with our own fields."""


def family_of(config: GPTConfig) -> Family | None:
    """The Hugging Face architecture that computes the same function, or None."""
    return next((family for family in FAMILIES.values() if not family.obstacles(config)), None)


def supported_family(model_type: str | None) -> Family:
    """The architecture of a config.json.

    Raises:
        ValueError: one that we lack; names those that there are.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"model_type={model_type!r} is not supported: {', '.join([*FAMILIES, OWN_TYPE])} are")
    return FAMILIES[model_type]


def obstacles(config: GPTConfig) -> list[str]:
    """Fields without counterpart, as `field=value`, in the architecture that lacks the fewest; [] when one has all."""
    # On a tie the architecture with experts tells more about experts than that the others have none.
    return min(
        (family.obstacles(config) for family in FAMILIES.values()), key=lambda found: (len(found), "moe" in found)
    )


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a model directory.

    Raises:
        ValueError: no JSON object.
    """
    return read_object(directory / "config.json")


def read_object(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        ValueError: it is none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): restore it or export the model again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object: restore it or export the model again")
    return values


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the shards that model.safetensors.index.json names.

    Raises:
        FileNotFoundError: no weights, or a shard is gone.
        ValueError: a damaged file, by name.
    """
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if single.exists():
        files = [single]
    elif index.exists():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (json.JSONDecodeError, KeyError, AttributeError):
            raise ValueError(f"{index} is damaged: it has no weight_map") from None
        files = [directory / name for name in sorted(set(names))]
    else:
        hint = ""
        if (directory / "pytorch_model.bin").exists():
            hint = ": pytorch_model.bin can run code when loaded, convert it to safetensors with transformers first"
        raise FileNotFoundError(f"{directory} has no model.safetensors{hint}")
    tensors: dict[str, Tensor] = {}
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing, but {index.name} names it: copy all shards")
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is truncated or not a safetensors file ({error})") from None
    return tensors


def load_huggingface(directory: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> GPT:
    """The network of a directory that this program or transformers wrote.

    A directory of ours also carries our own fields, so that what its architecture spells differently (an absent bias
    is a zero bias there) comes back as it was.

    Raises:
        FileNotFoundError, ValueError: missing or damaged files, an architecture or setting that we lack.
    """
    return network_of(read_config(directory), read_tensors(directory), directory, dtype, device)


def network_of(
    values: dict[str, Any],
    tensors: Mapping[str, Tensor],
    directory: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> GPT:
    """The network of a config.json and its tensors, or of such a part of a directory's.

    Raises:
        ValueError: as load_huggingface.
    """
    config, family = _described(values, directory)
    if about := values.get("quantization_config"):
        try:
            read = import_quantized(about, tensors, family, config, str(directory))
        except ValueError as error:
            raise ValueError(f"{directory}: {str(error).removeprefix(f'{directory}: ')}") from None
        net = network_from_state(config, read.state, str(directory), dtype, device, read.act_bits)
        if read.bitsandbytes is not None:
            kind, names = read.bitsandbytes
            for name in names:
                net.set_submodule(name, make_layer(net.get_submodule(name), kind))
        return net
    if family is not None:
        tensors = import_tensors(family, config, tensors, str(directory))
    return network_from_state(config, tensors, str(directory), dtype, device)


def read_network_config(directory: Path) -> GPTConfig:
    """The network that a directory's config.json describes.

    Raises:
        ValueError: an architecture or setting that we lack.
    """
    return _described(read_config(directory), directory)[0]


def _described(values: dict[str, Any], directory: Path) -> tuple[GPTConfig, Family | None]:
    """The network of config.json and its family; None = our own format."""
    kind, own = values.get("model_type"), values.get(OWN_TYPE)
    try:
        if kind == OWN_TYPE:
            if not isinstance(own, dict):
                raise ValueError(f"the key {OWN_TYPE!r} is missing")
            return GPTConfig.from_dict(own), None
        family = supported_family(kind)
        return _own_config(family, values) or family.from_config(values), family
    except (ValueError, TypeError) as error:
        raise ValueError(f"{directory / 'config.json'}: {error}") from None


def _own_config(family: Family, values: dict[str, Any]) -> GPTConfig | None:
    """Our fields of a config.json, unless there are none or another program has changed the network since."""
    if not isinstance(values.get(OWN_TYPE), dict):
        return None
    config = GPTConfig.from_dict(values[OWN_TYPE])
    return config if all(values.get(key, value) == value for key, value in family.to_config(config).items()) else None
