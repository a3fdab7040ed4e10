"""LLM.int8() (Dettmers et al., 2022) and NF4 (Dettmers et al., 2023) as bitsandbytes computes and transformers stores
them. Legend: N outputs, K inputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["llm_int8", "nf4"]
NF4_BLOCK = 64
"""Numbers that share a scale."""
OUTLIER = 6.0
"""LLM.int8(): inputs beyond this are multiplied in the network's own type."""


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError:
        raise ImportError("llm_int8 and nf4 need bitsandbytes: pip install 'lightning_gpt[quant]'") from None
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it speaks in every layer's forward pass
    return bitsandbytes


def is_bitsandbytes(module: nn.Module) -> bool:
    """Whether a layer is one of bitsandbytes' (which it does not import)."""
    return type(module).__module__.startswith("bitsandbytes.")


def kind_of(net: nn.Module) -> Kind | None:
    """Which of the two a network has; None = neither."""
    kinds: set[Kind] = {
        "nf4" if type(module).__name__ == "Linear4bit" else "llm_int8"
        for module in net.modules()
        if is_bitsandbytes(module)
    }
    return kinds.pop() if kinds else None


def make_layer(linear: nn.Linear, kind: Kind, exact: bool = False) -> nn.Module:
    """A layer of bitsandbytes with these weights, on the same device.

    Args:
        linear: float.
        kind: which.
        exact: nf4 without the CPU kernel for one row, which is ten times as fast there but rounds scales to bfloat16
            for good.

    Raises:
        ImportError: bitsandbytes is not installed.
    """
    bnb = _bitsandbytes()
    shape, weight = (linear.in_features, linear.out_features), linear.weight
    biased = linear.bias is not None
    if kind == "nf4":
        settings = {"quant_type": "nf4", "compute_dtype": weight.dtype, "compress_statistics": False}
        layer = bnb.nn.Linear4bit(*shape, bias=biased, **settings)
    else:
        layer = bnb.nn.Linear8bitLt(*shape, bias=biased, has_fp16_weights=False, threshold=OUTLIER)
    if exact and kind == "nf4":
        layer.support_avx512bf16_for_cpu = False
    layer.load_state_dict({name: tensor.detach() for name, tensor in linear.state_dict().items()})
    return layer.to(weight.device).eval().requires_grad_(False)


def layer_weight(layer: nn.Module) -> Tensor:
    """W of such a layer, float32 (N, K)."""
    state = layer.state_dict()
    scales = state.get("weight.absmax")
    if scales is not None and scales.ndim == 2:
        # On some CPUs the first forward pass reorders the numbers; state_dict puts them back, not the scales (0.50).
        state["weight.absmax"] = scales.T.reshape(-1).float()
    return stored_weight({name: state[name] for name in state if name != "bias"}, "weight").float()


def stored_weight(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The matrix whose parts are stored under `name`: `name.absmax`, ... (4 bits), or SCB beside it (8 bits)."""
    bnb = _bitsandbytes()
    scales = tensors.get(name.removesuffix("weight") + "SCB")
    if scales is not None:
        return tensors[name].float() * (scales.float()[:, None] / 127)
    parts = {key: tensor for key, tensor in tensors.items() if key.startswith(name + ".")}
    state = bnb.functional.QuantState.from_dict(parts, device=tensors[name].device)
    return bnb.functional.dequantize_4bit(tensors[name], state)


def store_weight(weight_NK: Tensor, name: str, kind: Kind) -> dict[str, Tensor]:
    """The inverse: tensors as transformers writes them."""
    bnb = _bitsandbytes()
    if kind == "llm_int8":
        scales = weight_NK.abs().amax(dim=1).float()
        values = (weight_NK * (127 / scales.clamp(min=1e-12))[:, None]).round().to(torch.int8)
        format_of = name.removesuffix("weight") + "weight_format"
        return {
            name: values,
            name.removesuffix("weight") + "SCB": scales,
            format_of: torch.tensor(0, dtype=torch.uint8),
        }
    settings = {"blocksize": NF4_BLOCK, "quant_type": "nf4", "compress_statistics": False}
    packed, state = bnb.functional.quantize_4bit(weight_NK.contiguous(), **settings)
    parts = {f"{name}.{key}": tensor for key, tensor in state.as_dict(packed=True).items()}
    return {name: packed} | {key: tensor.contiguous() for key, tensor in parts.items()}


def stored_names(tensors: Mapping[str, Tensor]) -> set[str]:
    """Names of the matrices that are stored so."""
    eight = {name.removesuffix("SCB") + "weight" for name in tensors if name.endswith(".SCB")}
    four = {name.rpartition(".weight.")[0] + ".weight" for name in tensors if ".weight.quant_state." in name}
    return eight | four


def quantization_config(kind: Kind, ignore: list[str]) -> dict[str, Any]:
    """What transformers' BitsAndBytesConfig writes into config.json."""
    four = kind == "nf4"
    return {
        "quant_method": "bitsandbytes",
        "load_in_8bit": not four,
        "load_in_4bit": four,
        "llm_int8_threshold": OUTLIER,
        "llm_int8_skip_modules": ignore,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": "float32",
    }
