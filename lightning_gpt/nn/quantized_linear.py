"""A linear layer whose matrix is whole numbers of 8 or 4 bits. Legend: N outputs, K inputs, G groups of each row,
M rows of the input."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BITS = (8, 4)


def limits(bits: int) -> tuple[int, int]:
    """Smallest and largest whole number of so many bits."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def pack_nibbles(values_NK: Tensor) -> Tensor:
    """int8 in [-8, 7] -> uint8 (N, K / 2): value + 8 in 4 bits, even k in the low ones."""
    shifted = (values_NK + 8).to(torch.uint8)
    return shifted[:, 0::2] | (shifted[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse: int8 (N, K)."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).view(torch.int8).flatten(1) - 8


def dequantize(values_NK: Tensor, scale_NG: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """values * scale of their group, (N, K)."""
    N, K = values_NK.shape
    # One long column of groups: broadcasting over (N, G, K / G) takes five times as long on CPU.
    groups = values_NK.to(dtype).view(-1, K // scale_NG.shape[1])
    return groups.mul_(scale_NG.reshape(-1, 1).to(dtype)).view(N, K)


def quantize_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Every row to int8 by its own largest magnitude: whole numbers (M, K) and float32 scales (M, 1)."""
    scale_M1 = x_MK.abs().amax(dim=-1, keepdim=True).float().clamp_(min=1e-12) / 127
    return (x_MK / scale_M1).round_().to(torch.int8), scale_M1


class QuantizedLinear(nn.Module):
    """y = x W^T + bias with W[n, k] = value[n, k] * scale[n, group of k], symmetric: zero is zero.

    Buffers, which are all that is saved:
        weight: int8 (N, K) for 8 bits; uint8 (N, K / 2) for 4, see pack_nibbles.
        scale: float32 (N, K / group_size), whatever type the network is brought to.
        bias: (N,), where the layer has one.

    Args:
        in_features: K.
        out_features: N.
        bits: 8 or 4.
        group_size: inputs that share a scale; K = one scale for each row.
        act_bits: 8 = every row of the input is rounded to 8 bits too and the product is one of whole numbers (W8A8,
            LLM.int8's vector-wise scheme without its outliers); needs bits=8 and group_size=K. None = the matrix alone.
        bias: whether there is one.

    Raises:
        ValueError: numbers that do not go together.
    """

    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int = 8,
        group_size: int | None = None,
        act_bits: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits, self.act_bits = in_features, out_features, bits, act_bits
        self.group_size = group_size or in_features
        if bits not in BITS:
            raise ValueError(f"bits={bits}: {' or '.join(map(str, BITS))} are possible")
        if in_features % self.group_size or (bits == 4 and in_features % 2):
            raise ValueError(f"group_size={self.group_size} and bits={bits} do not divide {in_features} inputs")
        if act_bits is not None and (act_bits, bits, self.group_size) != (8, 8, in_features):
            raise ValueError(
                f"act_bits={act_bits} with bits={bits}, group_size={self.group_size}: only 8-bit inputs, with 8-bit "
                "weights of one scale a row, are possible"
            )
        packed = bits == 4
        shape = (out_features, in_features // 2 if packed else in_features)
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.uint8 if packed else torch.int8))
        self.register_buffer("scale", torch.ones(out_features, in_features // self.group_size))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    def from_values(
        cls, values_NK: Tensor, scale_NG: Tensor, bias: Tensor | None, bits: int, act_bits: int | None = None
    ) -> QuantizedLinear:
        """A layer of these whole numbers (int8, one each) and scales."""
        N, K = values_NK.shape
        with torch.device("meta"):
            layer = cls(K, N, bits, K // scale_NG.shape[1], act_bits, bias is not None)
        layer.weight = pack_nibbles(values_NK) if bits == 4 else values_NK.contiguous()
        layer.scale = scale_NG.float().contiguous()
        layer.bias = None if bias is None else bias.detach().clone()
        return layer.eval()

    def values(self) -> Tensor:
        """The whole numbers, int8 (N, K)."""
        return unpack_nibbles(self.weight) if self.bits == 4 else self.weight

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W, (N, K)."""
        return dequantize(self.values(), self.scale, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), in the type of x.

        Measured on a CPU with AVX512-VNNI, N=3072, K=768, one thread, in us at 1 / 32 / 512 rows: W8A8 250 / 380 /
        3,400, where the float32 layer takes 340 / 1,190 / 12,700. Without act_bits the matrix is made anew every time,
        which costs 450 (8 bits) or 1,850 (4 bits) beside the product: it saves memory, not time.
        """
        if self.act_bits is None:
            if self.scale.shape[1] > 1:
                return F.linear(x, self.dequantized(x.dtype), self._bias(x.dtype))
            y = F.linear(x, self.values().to(x.dtype)) * self.scale[:, 0].to(x.dtype)
            return y if self.bias is None else y + self._bias(x.dtype)
        x_MK = x.reshape(-1, self.in_features)
        values_MK, scale_M1 = quantize_rows(x_MK)
        y_MN = _whole_product(values_MK, self.weight).float().mul_(scale_M1).mul_(self.scale[:, 0])
        if self.bias is not None:
            y_MN += self.bias
        return y_MN.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.bias is None else self.bias.to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != scale.dtype and not self.scale.is_meta:  # .bfloat16() would round the scales
            self.scale = scale.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        """For print."""
        group = "" if self.group_size == self.in_features else f", group_size={self.group_size}"
        inputs = "" if self.act_bits is None else f", act_bits={self.act_bits}"
        return f"{self.in_features}, {self.out_features}, bits={self.bits}{group}{inputs}, bias={self.bias is not None}"


def _whole_product(x_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """x W^T of int8 in int32, (M, N)."""
    M = len(x_MK)
    if not x_MK.is_cuda or M > 16:
        return torch._int_mm(x_MK, weight_NK.T)
    return torch._int_mm(F.pad(x_MK, (0, 0, 0, 32 - M)), weight_NK.T)[:M]  # the GPU's kernel asks for more than 16 rows


def plain_quantized_linear(layer: QuantizedLinear, x: Tensor) -> Tensor:
    """The readable twin of QuantizedLinear.forward, in float64."""
    values = layer.values().double().unflatten(1, (-1, layer.group_size))
    weight_NK = (values * layer.scale.double()[..., None]).flatten(1)
    x = x.double()
    if layer.act_bits is not None:
        step = x.abs().amax(dim=-1, keepdim=True) / 127
        x = torch.where(step > 0, torch.round(x / step) * step, 0.0)
    y = x @ weight_NK.T
    return y if layer.bias is None else y + layer.bias.double()


def quantizable(net: nn.Module, head: bool = False) -> Iterator[tuple[str, nn.Linear]]:
    """Name and module of the float layers of a GPT that can be quantized: those of attention, of dense feed-forwards
    and of shared experts, in the order in which they are computed; with `head` the head last.

    Stacked experts are no linear layers, and routers stay exact: what they choose would change.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and ".router." not in name:
            yield name, module
    if head and isinstance(net.head, nn.Linear):
        yield "head", net.head


def quantized_layers(net: nn.Module) -> dict[str, QuantizedLinear]:
    """The quantized layers of a network by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, QuantizedLinear)}
