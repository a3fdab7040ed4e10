"""The compressed-tensors format, which transformers and vLLM read: symmetric whole numbers of 8 and 4 bits.

| scheme         | format         | tensors of a layer                                                           |
|----------------|----------------|------------------------------------------------------------------------------|
| W8A8           | int-quantized  | weight int8 (N, K), weight_scale (N, 1)                                      |
| W8A16, W4A16   | pack-quantized | weight_packed int32 (N, K bits / 32), weight_scale (N, G), weight_shape (2,) |

Legend: N outputs, K inputs, G groups of each row.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

FORMATS = {8: "int-quantized", None: "pack-quantized"}
"""By act_bits."""
PACKED, SCALE, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"


class Scheme(NamedTuple):
    """What a directory's quantization_config says."""

    bits: int
    act_bits: int | None


class WholeNumbers(NamedTuple):
    """A matrix of whole numbers with their scales."""

    values_NK: Tensor
    """int8."""
    scale_NG: Tensor
    """float32."""


def pack_int32(values_NK: Tensor, bits: int) -> Tensor:
    """int8 -> int32 (N, K bits / 32): value + 2^(bits - 1) in so many bits, the first number in the lowest ones; rows
    are filled up with zeros."""
    each = 32 // bits
    values = torch.nn.functional.pad(values_NK.to(torch.int64), (0, -values_NK.shape[1] % each)) + (1 << (bits - 1))
    words = (values.unflatten(1, (-1, each)) << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def unpack_int32(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse, int8 (N, columns)."""
    shifted = packed.to(torch.int64)[..., None] >> torch.arange(0, 32, bits)
    values = (shifted & ((1 << bits) - 1)).flatten(1)[:, :columns] - (1 << (bits - 1))
    return values.to(torch.int8)


def quantization_config(bits: int, group_size: int | None, act_bits: int | None, ignore: list[str]) -> dict[str, Any]:
    """As config.json holds it.

    Args:
        bits: of the weights.
        group_size: inputs that share a scale; None = a whole row.
        act_bits: 8, or None.
        ignore: linear layers that are not quantized, by name or as "re:" and a pattern.
    """
    usual = {"type": "int", "symmetric": True, "observer": None, "observer_kwargs": {}, "block_structure": None}
    strategy = "channel" if group_size is None else "group"
    weights = {"num_bits": bits, "strategy": strategy, "group_size": group_size, "dynamic": False, "actorder": None}
    inputs = {"num_bits": 8, "strategy": "token", "group_size": None, "dynamic": True, "actorder": None}
    group = {
        "targets": ["Linear"],
        "weights": usual | weights,
        "input_activations": usual | inputs if act_bits else None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": FORMATS[act_bits],
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "kv_cache_scheme": None,
    }


def read_scheme(values: Mapping[str, Any]) -> Scheme:
    """The scheme of a quantization_config.

    Raises:
        ValueError: one that we have no layer for, naming what.
    """
    groups = list((values.get("config_groups") or {}).values())
    if len(groups) != 1:
        raise ValueError(f"quantization_config has {len(groups)} config_groups, one is supported")
    if values.get("format") not in FORMATS.values():
        raise ValueError(
            f"quantization_config.format={values.get('format')!r} is not supported: {', '.join(FORMATS.values())} are"
        )
    weights, inputs = groups[0].get("weights") or {}, groups[0].get("input_activations")
    strategies = ("channel", "group", "tensor")
    _require("weights", weights, type=("int",), symmetric=(True,), num_bits=(4, 8), strategy=strategies)
    if inputs is not None:
        fixed = {"type": ("int",), "symmetric": (True,), "num_bits": (8,), "dynamic": (True,), "strategy": ("token",)}
        _require("input_activations", inputs, **fixed)
        if weights["num_bits"] != 8 or weights["strategy"] == "group":
            raise ValueError("quantized inputs with 4-bit or grouped weights are not supported")
    if weights.get("actorder") in ("group", True):
        raise ValueError("quantization_config: weights.actorder=group is not supported, static is")
    return Scheme(weights["num_bits"], None if inputs is None else 8)


def _require(part: str, values: Mapping[str, Any], **allowed: tuple) -> None:
    for name, choices in allowed.items():
        if values.get(name) not in choices:
            raise ValueError(
                f"quantization_config: {part}.{name}={values.get(name)!r} is not supported: "
                f"{', '.join(map(str, choices))} {'are' if len(choices) > 1 else 'is'}"
            )


def store(name: str, whole: WholeNumbers, bits: int, act_bits: int | None) -> dict[str, Tensor]:
    """The tensors of one layer.

    Args:
        name: of its matrix, ending in .weight.
    """
    base = name.removesuffix(".weight")
    scale = {base + SCALE: whole.scale_NG.contiguous()}
    if act_bits is not None:
        return {name: whole.values_NK.contiguous()} | scale
    shape = torch.tensor(whole.values_NK.shape, dtype=torch.int64)
    return {base + PACKED: pack_int32(whole.values_NK, bits), base + SHAPE: shape} | scale


def split_stored(
    tensors: Mapping[str, Tensor], scheme: Scheme, source: str
) -> tuple[dict[str, WholeNumbers], dict[str, Tensor]]:
    """Whole numbers by the name of their matrix, and all other tensors.

    Raises:
        ValueError: tensors that do not go together, by name.
    """
    whole, rest = {}, {}
    for name, tensor in tensors.items():
        base, _, kind = name.rpartition(".")
        packed, scale = kind == "weight_packed", tensors.get(base + SCALE)
        if not packed and not (kind == "weight" and tensor.dtype == torch.int8):
            if kind not in ("weight_scale", "weight_shape", "weight_zero_point"):
                rest[name] = tensor
            elif kind == "weight_zero_point" and tensor.any():
                raise ValueError(f"{source}: {name} is not zero, asymmetric weights are not supported")
            continue
        if scale is None:
            raise ValueError(f"{source} lacks {base + SCALE}")
        columns = tensor.shape[1] * (32 // scheme.bits) if packed else tensor.shape[1]
        if packed and base + SHAPE in tensors:
            columns = int(tensors[base + SHAPE][1])
        values = unpack_int32(tensor, scheme.bits, columns) if packed else tensor
        scale = scale.float().reshape(scale.shape[0] if scale.ndim else 1, -1)
        scale = scale.expand(len(values), -1).contiguous()  # one of the whole matrix
        if columns % scale.shape[1]:
            raise ValueError(f"{source}: {base + SCALE} has {scale.shape[1]} groups for {columns} inputs")
        whole[base + ".weight"] = WholeNumbers(values, scale)
    return whole, rest
