"""What is asked of a quantization, and what a network allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lightning_gpt.hub.bitsandbytes_layers import NF4_BLOCK
from lightning_gpt.nn import GPT
from lightning_gpt.nn.quantized_linear import BITS, quantizable

Method = Literal["rtn", "gptq", "awq", "smoothquant", "llm_int8", "nf4"]
CALIBRATED = ("gptq", "awq", "smoothquant")
FOLDED = ("awq", "smoothquant")
BITSANDBYTES = ("llm_int8", "nf4")
USUAL_GROUPS = (128, 64, 32)
"""Sizes that other engines have kernels for."""


@dataclass(frozen=True)
class Settings:
    """How to quantize.

    Raises:
        ValueError: settings that do not go together.
    """

    method: Method = "rtn"
    bits: int | None = None
    """8 or 4; null = 8, for nf4 4."""
    group_size: int | None = None
    """Inputs that share a scale; -1 = a whole row; null: for 4 bits the largest of 128, 64, 32 that divides the layers,
    for 8 a whole row."""
    act_bits: int | None = None
    """8 = inputs are rounded to 8 bits as well (W8A8); smoothquant always does."""
    head: bool = False
    """Also the output head; a tied one gets a matrix of its own."""
    clip: bool | None = None
    """Whether scales are searched for the least error in place of none clipped; null = for 4 bits."""
    damping: float = 0.01
    """gptq: share of the mean that is added to the Hessian's diagonal."""
    act_order: bool = True
    """gptq: columns of large inputs first."""
    alpha: float = 0.5
    """smoothquant: share of the difficulty that goes from the inputs into the weights."""

    def __post_init__(self) -> None:
        if self.method not in Method.__args__:
            raise ValueError(f"method={self.method!r} is unknown: use one of {', '.join(Method.__args__)}")
        if self.bits is None:
            object.__setattr__(self, "bits", 4 if self.method == "nf4" else 8)
        if self.bits not in BITS:
            raise ValueError(f"bits={self.bits} is not possible: use 8 or 4")
        if self.act_bits not in (None, 8):
            raise ValueError(f"act_bits={self.act_bits} is not possible: use 8, or null for the weights alone")
        if self.method in BITSANDBYTES:
            self._check_bitsandbytes()
        if self.method == "smoothquant" and self.bits != 8:
            raise ValueError(f"method=smoothquant with bits={self.bits}: it is made for 8, use awq or gptq for 4")
        if self.rounds_inputs and self.bits != 8:
            raise ValueError(f"act_bits=8 with bits={self.bits}: products of whole numbers need bits=8")
        if self.rounds_inputs and self.group_size not in (None, -1):
            raise ValueError(f"act_bits=8 with group_size={self.group_size}: products of whole numbers need whole rows")
        if self.group_size is not None and self.group_size != -1 and self.group_size < 2:
            raise ValueError(f"group_size={self.group_size} must be at least 2, or -1 for a whole row")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} must be between 0 and 1")
        if self.damping <= 0:
            raise ValueError(f"damping={self.damping} must be positive")

    def _check_bitsandbytes(self) -> None:
        bits = 4 if self.method == "nf4" else 8
        if self.bits != bits:
            raise ValueError(f"method={self.method} has {bits} bits: leave bits={self.bits} out")
        for name in ("group_size", "act_bits", "clip"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)} has no effect with method={self.method}: leave it out")

    @property
    def rounds_inputs(self) -> bool:
        """Whether the layers round their inputs."""
        return self.act_bits is not None or self.method == "smoothquant"

    @property
    def clips(self) -> bool:
        """Whether scales are searched for."""
        return self.bits == 4 if self.clip is None else self.clip


def group_size_of(net: GPT, settings: Settings) -> int | None:
    """Inputs that share a scale, for all layers; None = a whole row.

    Raises:
        ValueError: the size does not divide the layers' inputs; names those nearest that do.
    """
    sizes = {name: layer.in_features for name, layer in quantizable(net, settings.head)}
    if not sizes:
        raise ValueError("the network has no float layer to quantize: is it quantized already?")
    if settings.method == "nf4":
        _check_divides(NF4_BLOCK, sizes, "nf4 takes")
        return None
    if settings.method == "llm_int8":
        return None
    if settings.bits == 4:
        _check_divides(2, sizes, "4 bits, two numbers a byte, take")
    if settings.group_size == -1 or (settings.group_size is None and settings.bits == 8):
        return None
    common = math.gcd(*sizes.values())
    if settings.group_size is None:
        return next((size for size in USUAL_GROUPS if common % size == 0), None)
    wrong = next((name for name, size in sizes.items() if size % settings.group_size), None)
    if wrong is not None:
        fitting = [size for size in range(2, common + 1) if common % size == 0]
        below = [size for size in fitting if size < settings.group_size][-1:]
        above = [size for size in fitting if size > settings.group_size][:1]
        choices = " or ".join(map(str, [*below, *above])) or "-1 (a whole row)"
        raise ValueError(
            f"group_size={settings.group_size} does not divide the {sizes[wrong]} inputs of {wrong}: use {choices}"
        )
    return settings.group_size


def _check_divides(size: int, sizes: dict[str, int], who: str) -> None:
    for name, inputs in sizes.items():
        if inputs % size:
            raise ValueError(
                f"{who} multiples of {size} inputs, but {name} has {inputs}: build the network with "
                f"{inputs // size * size or size} or {-(-inputs // size) * size}, or use bits=8"
            )


def check_weights(net: GPT) -> None:
    """Raises ValueError, with their names, for weights that are not finite."""
    broken = [name for name, weight in net.named_parameters() if not torch.isfinite(weight).all()]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise ValueError(
            f"weights {', '.join(broken[:3])}{more} hold NaN or infinite numbers: quantize an earlier checkpoint"
        )


def nbytes(net: nn.Module) -> int:
    """Bytes of all that a network saves; what is shared counts once."""
    tensors = [tensor for tensor in net.state_dict().values() if isinstance(tensor, torch.Tensor)]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
