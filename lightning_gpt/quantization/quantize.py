"""A network's linear layers replaced by quantized ones, block by block. Legend: B sequences, T tokens, N outputs,
K inputs, M rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gpt.hub.bitsandbytes_layers import layer_weight, make_layer
from lightning_gpt.nn import GPT
from lightning_gpt.nn.quantized_linear import QuantizedLinear, quantizable
from lightning_gpt.quantization.awq import awq_factors
from lightning_gpt.quantization.blockwise import BlockWalk, InputStatistics
from lightning_gpt.quantization.folding import Fold, fold, fold_of_head, folds, give_gains
from lightning_gpt.quantization.gptq import gptq
from lightning_gpt.quantization.grid import best_scale, nearest, round_to_nearest
from lightning_gpt.quantization.settings import BITSANDBYTES, CALIBRATED, FOLDED, Settings, check_weights, group_size_of
from lightning_gpt.quantization.smoothquant import smoothing_factors


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer."""

    name: str
    error: float
    """||y' - y|| / ||y|| of its outputs on some of the calibration's inputs (rounded inputs included); without a
    calibration, ||W' - W|| / ||W||."""


def quantize_network(
    net: GPT, settings: Settings, ids_BT: Tensor | None = None, say: Callable[[str], None] | None = None
) -> list[LayerReport]:
    """Quantizes the layers of a network in place; needs memory for one block's statistics beside it.

    Args:
        net: in evaluation mode, float32.
        settings: how.
        ids_BT: int64, the calibration; may be None for methods that need none.
        say: called with a line when a block is done.

    Raises:
        ValueError: the network's shape, weights or activations do not allow it.
    """
    group_size = group_size_of(net, settings)  # before any work is done
    check_weights(net)
    if settings.method in CALIBRATED and ids_BT is None:
        raise ValueError(f"method={settings.method} needs a calibration text")
    if settings.method in FOLDED:
        if net.config.norm_place == "post":
            raise ValueError(
                f"method={settings.method} with norm_place=post: there a norm's output is the residual stream, factors "
                "cannot be folded into it; use gptq or rtn"
            )
        give_gains(net)
    if settings.head and net.config.tie_embeddings:
        untie(net)
    say = say or (lambda line: None)
    began = time.monotonic()
    walk = BlockWalk(net, ids_BT) if ids_BT is not None else None
    reports = []
    for index, block in enumerate(net.blocks):
        own = f"blocks.{index}."
        names = [name.removeprefix(own) for name, _ in quantizable(net) if name.startswith(own)]
        foldable = folds(block, net.config) if settings.method in FOLDED else {}
        statistics: dict[str, InputStatistics] = {}
        # GPTQ corrects each layer for the errors of those before it, in the same block too.
        for stage in [[name] for name in names] if settings.method == "gptq" else [names]:
            if walk is not None:
                modules = {name: block.get_submodule(name) for name in stage}
                statistics = walk.statistics(index, modules, settings.method in ("gptq", "awq"))
            for name in stage:
                if name in foldable:
                    _fold(block.get_submodule(name), foldable[name], statistics[name], settings, group_size)
            for name in stage:
                error = _replace(block, name, statistics.get(name), settings, group_size)
                reports.append(LayerReport(own + name, error))
        if walk is not None:
            walk.advance(index)
        left = (time.monotonic() - began) / (index + 1) * (len(net.blocks) - index - 1)
        worst = max((report.error for report in reports if report.name.startswith(own)), default=0.0)
        say(f"block {index + 1} of {len(net.blocks)}: largest error {worst:.2%}, {left:.0f} s left")
    if settings.head:
        statistics_of_head = walk.head_statistics(settings.method in ("gptq", "awq")) if walk is not None else None
        if settings.method in FOLDED and (how := fold_of_head(net)) is not None:
            _fold(net.head, how, statistics_of_head, settings, group_size)
        reports.append(LayerReport("head", _replace(net, "head", statistics_of_head, settings, group_size)))
    return reports


def untie(net: GPT) -> None:
    """Gives a head that shares the embedding's matrix a copy of its own."""
    net.config = replace(net.config, tie_embeddings=False)
    net.head.weight = nn.Parameter(net.head.weight.detach().clone())


def _groups(layer: nn.Linear, group_size: int | None) -> int:
    return 1 if group_size is None else layer.in_features // group_size


@torch.no_grad()
def _fold(layer: nn.Linear, how: Fold, statistics: InputStatistics, settings: Settings, group_size: int | None) -> None:
    """Finds the factors on a layer's inputs and moves them into its weights."""
    weight = layer.weight.float()
    if settings.method == "smoothquant":
        factors = smoothing_factors(weight, statistics.largest_K, settings.alpha, how.shared)
    else:
        groups = _groups(layer, group_size)
        factors, _ = awq_factors(
            weight, statistics.mean_K, statistics.hessian_KK, settings.bits, groups, shared=how.shared
        )
    fold(layer, how, factors)
    statistics.divide(factors)


@torch.no_grad()
def _replace(
    parent: nn.Module, name: str, statistics: InputStatistics | None, settings: Settings, group_size: int | None
) -> float:
    """Puts a quantized layer in the place of a float one; the relative error."""
    layer = parent.get_submodule(name)
    if settings.method in BITSANDBYTES:
        new = make_layer(layer, settings.method, exact=True)
    else:
        values, scale = _whole_numbers(layer, statistics, settings, group_size)
        new = QuantizedLinear.from_values(
            values, scale, layer.bias, settings.bits, 8 if settings.rounds_inputs else None
        )
    parent.set_submodule(name, new)
    if statistics is not None:
        probes = statistics.probes_MK
        expected = F.linear(probes, layer.weight)
        gap = new(probes) - F.linear(probes, layer.weight, layer.bias)
    else:
        expected = layer.weight
        gap = (new.dequantized() if isinstance(new, QuantizedLinear) else layer_weight(new)) - layer.weight
    size = float(expected.norm())
    return float(gap.norm()) / size if size else 0.0


def _whole_numbers(
    layer: nn.Linear, statistics: InputStatistics | None, settings: Settings, group_size: int | None
) -> tuple[Tensor, Tensor]:
    weight, groups = layer.weight.float(), _groups(layer, group_size)
    if settings.method == "gptq":
        return gptq(
            weight,
            statistics.hessian_KK,
            settings.bits,
            groups,
            settings.damping,
            settings.clips,
            settings.act_order,
        )
    if settings.method == "awq" and settings.clips:
        scale = best_scale(weight, settings.bits, groups, statistics.hessian_KK)
        return nearest(weight, scale, settings.bits), scale
    return round_to_nearest(weight, settings.bits, groups, settings.clips)
