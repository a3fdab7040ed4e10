"""Quantized networks in model directories: compressed-tensors or bitsandbytes where transformers has a class with
linear layers for the network, else our own names with `weight`, `scale` and `bias` of a layer as QuantizedLinear has
them.

Their q, k, v and gate, up are rows of one matrix of ours, so whole numbers and scales are split and joined by rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_gpt.hub import bitsandbytes_layers as bnb
from lightning_gpt.hub import compressed_tensors as compressed
from lightning_gpt.hub.compressed_tensors import WholeNumbers
from lightning_gpt.hub.family import Family, TensorMap, export_tensors, import_tensors
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.quantized_linear import QuantizedLinear, dequantize, pack_nibbles, quantized_layers

OWN_METHOD = "lightning_gpt"
"""quant_method of directories in our own names."""


class QuantizedState(NamedTuple):
    """What becomes of a network's state_dict."""

    tensors: dict[str, Tensor]
    quantization_config: dict[str, Any]


def is_quantized(net: nn.Module) -> bool:
    """Whether a network has layers that cannot be trained."""
    return any(isinstance(module, QuantizedLinear) or bnb.is_bitsandbytes(module) for module in net.modules())


def refuse_quantized(net: nn.Module, what: str) -> None:
    """Raises ValueError when a network's layers are quantized; `what` names it, as model.init_from=DIR."""
    if is_quantized(net):
        raise ValueError(
            f"{what} is quantized and cannot be trained: train from the model that it was made of, or write its "
            "rounded weights as plain ones with `lightning-gpt quantize DIR --method dequantize --out OTHER`"
        )


def can_hold(family: Family | None, config: GPTConfig) -> bool:
    """Whether transformers reads an architecture quantized: GPT-2's matrices are no linear layers there, and of a
    mixture it wants the experts quantized too."""
    return family is not None and not any(entry.transposed or entry.stack for entry in family.tensors(config))


def export_quantized(net: GPT, family: Family | None) -> QuantizedState:
    """Tensors and quantization_config of a quantized network.

    Args:
        net: with layers of one kind.
        family: the architecture to write; None = our own names.
    """
    kind = bnb.kind_of(net)
    if kind is not None:
        return _export_bitsandbytes(net, family, kind)
    layers = quantized_layers(net)
    first = next(iter(layers.values()))
    group_size = None if all(layer.group_size == layer.in_features for layer in layers.values()) else first.group_size
    tied = net.config.tie_embeddings
    if family is None:
        own = {"quant_method": OWN_METHOD, "bits": first.bits, "group_size": group_size, "act_bits": first.act_bits}
        state = {n: t.detach().cpu().contiguous() for n, t in net.state_dict().items()}
        return QuantizedState({n: t for n, t in state.items() if not (tied and n == "head.weight")}, own)
    state = dict(net.state_dict())
    for name, layer in layers.items():
        state[name + ".weight"] = layer.values()
    tensors = export_tensors(family, net.config, state)
    for entry in family.tensors(net.config):
        layer = layers.get((entry.ours or "").removesuffix(".weight"))
        if layer is None or not entry.ours.endswith(".weight"):
            continue
        scale = layer.scale.detach().cpu()[: entry.shape[0]]
        scales = scale.split(entry.rows) if entry.rows else [scale] * len(entry.theirs)
        for name, part in zip(entry.theirs, scales, strict=True):
            whole = WholeNumbers(tensors.pop(name), part.clone())
            tensors |= compressed.store(name, whole, first.bits, first.act_bits)
    ignore = [] if "head" in layers else ["lm_head"]
    return QuantizedState(tensors, compressed.quantization_config(first.bits, group_size, first.act_bits, ignore))


def _export_bitsandbytes(net: GPT, family: Family | None, kind: bnb.Kind) -> QuantizedState:
    """Every part of a matrix is rounded again, which changes nothing: its numbers are on the grid already."""
    names = {name for name, module in net.named_modules() if bnb.is_bitsandbytes(module)}
    state = _float_state(net)
    if family is None:
        tied = net.config.tie_embeddings
        tensors = {n: t.detach().cpu() for n, t in state.items() if not (tied and n == "head.weight")}
        stored = {name + ".weight" for name in names}
    else:
        tensors = export_tensors(family, net.config, state)
        entries = [entry for entry in family.tensors(net.config) if (entry.ours or "").removesuffix(".weight") in names]
        stored = {name for entry in entries if entry.ours.endswith(".weight") for name in entry.theirs}
    for name in stored:
        tensors |= bnb.store_weight(tensors.pop(name), name, kind)
    return QuantizedState(tensors, bnb.quantization_config(kind, [] if "head" in names else ["lm_head"]))


def _float_state(net: nn.Module) -> dict[str, Tensor]:
    """state_dict with plain matrices in place of quantized ones."""
    state = {}
    layers = {n: m for n, m in net.named_modules() if isinstance(m, QuantizedLinear) or bnb.is_bitsandbytes(m)}
    for name, tensor in net.state_dict().items():
        if not any(name.startswith(layer + ".") for layer in layers):
            state[name] = tensor
    for name, layer in layers.items():
        ours = isinstance(layer, QuantizedLinear)
        state[name + ".weight"] = layer.dequantized() if ours else bnb.layer_weight(layer)
        if layer.bias is not None:
            state[name + ".bias"] = layer.bias.detach()
    return state


def dequantize_network(net: GPT) -> GPT:
    """Plain float layers in place of quantized ones, with the rounded weights; in place."""
    state = _float_state(net)
    dtype = net.token_embedding.weight.dtype
    for name, module in list(net.named_modules()):
        if not (isinstance(module, QuantizedLinear) or bnb.is_bitsandbytes(module)):
            continue
        layer = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
        layer.weight = nn.Parameter(state[name + ".weight"].to(dtype))
        if layer.bias is not None:
            layer.bias = nn.Parameter(state[name + ".bias"].to(dtype))
        net.set_submodule(name, layer)
    return net


class ReadState(NamedTuple):
    """A quantized directory's tensors as our network has them."""

    state: dict[str, Tensor]
    """With `name.scale` beside the whole numbers of a layer."""
    act_bits: int | None
    bitsandbytes: tuple[bnb.Kind, frozenset[str]] | None
    """Layers that bitsandbytes computes; their matrices are plain in `state`."""


def import_quantized(
    about: Mapping[str, Any], tensors: Mapping[str, Tensor], family: Family | None, config: GPTConfig, source: str
) -> ReadState:
    """The inverse of export_quantized, for directories of other programs too.

    Args:
        about: quantization_config.
        tensors: of the directory.
        family: None = our own names.
        config: the network.
        source: for messages.

    Raises:
        ValueError: a scheme that we have no layers for, or tensors that are not what it says.
    """
    method = about.get("quant_method")
    if method == "bitsandbytes":
        return _import_bitsandbytes(about, tensors, family, config, source)
    if method == OWN_METHOD and family is None:
        return ReadState(dict(tensors), about.get("act_bits"), None)
    if method != "compressed-tensors" or family is None:
        raise ValueError(
            f"{source}: weights quantized by quant_method={method!r} are not supported: compressed-tensors and "
            "bitsandbytes are"
        )
    scheme = compressed.read_scheme(about)
    whole, plain = compressed.split_stored(tensors, scheme, source)
    entries = list(family.tensors(config))
    for entry in entries:
        of_layer = [name for name in entry.theirs if name in whole]
        if of_layer and (entry.stack or len(of_layer) < len(entry.theirs) or not _is_layer(entry)):
            for name in of_layer:  # no layer of ours can hold it quantized
                plain[name] = dequantize(*whole.pop(name))
    state = import_tensors(family, config, plain | {name: one.values_NK for name, one in whole.items()}, source)
    for entry in entries:
        if entry.theirs[0] not in whole:
            continue
        scales = [whole[name].scale_NG for name in entry.theirs]
        if len({scale.shape[1] for scale in scales}) > 1:
            raise ValueError(f"{source}: {' and '.join(entry.theirs)} have groups of different sizes")
        base = entry.ours.removesuffix(".weight")
        state[base + ".scale"] = scales[0] if entry.repeated else torch.cat(scales)
        if entry.ours == "head.weight" and (padding := len(state[entry.ours]) - len(state[base + ".scale"])):
            state[base + ".scale"] = nn.functional.pad(state[base + ".scale"], (0, 0, 0, padding), value=1.0)
        if scheme.bits == 4:
            state[entry.ours] = pack_nibbles(state[entry.ours])
    return ReadState(state, scheme.act_bits, None)


def _is_layer(entry: TensorMap) -> bool:
    return bool(entry.ours and re.search(r"\.(qkv|out|up|gate_up|down)\.weight$|^head\.weight$", entry.ours))


def _import_bitsandbytes(
    about: Mapping[str, Any], tensors: Mapping[str, Tensor], family: Family | None, config: GPTConfig, source: str
) -> ReadState:
    stored = bnb.stored_names(tensors)
    kind: bnb.Kind = "nf4" if about.get("load_in_4bit") else "llm_int8"
    bases = tuple(name.removesuffix("weight") for name in stored)
    plain = {name: tensor for name, tensor in tensors.items() if not name.startswith(bases) or name.endswith(".bias")}
    plain |= {name: bnb.stored_weight(tensors, name).float() for name in stored}
    if family is None:
        return ReadState(plain, None, (kind, frozenset(name.removesuffix(".weight") for name in stored)))
    state = import_tensors(family, config, plain, source)
    entries = [entry for entry in family.tensors(config) if _is_layer(entry) and set(entry.theirs) <= stored]
    return ReadState(state, None, (kind, frozenset(entry.ours.removesuffix(".weight") for entry in entries)))
