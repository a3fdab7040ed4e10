"""Steps of the engine computed in C++ (inference/kernels): weights packed once for this processor's dot products.

Legend: N tokens, C width, V vocabulary.
"""

import ctypes
import weakref
from array import array
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_gpt.inference.kernels.library import Shape, Step, load_library
from lightning_gpt.inference.native_cache import NativeCache
from lightning_gpt.inference.runner import StepInput
from lightning_gpt.nn import GPT
from lightning_gpt.nn.config import GATED
from lightning_gpt.nn.quantized_linear import QuantizedLinear

WeightType = Literal["float32", "bfloat16", "int8"]

NORMS = ("layernorm", "rmsnorm")
PLACES = ("pre", "post", "sandwich")
ACTIVATIONS = {"relu": 0, "gelu": 1, "geglu": 1, "gelu_tanh": 2, "relu2": 3, "swiglu": 4}
KINDS = {"float32": 0, "bfloat16": 1, "int8": 2}
W8, W4 = 3, 4
LANES, QUAD, GROUP, WIDEST_HEAD = 16, 64, 32, 512


LAYERS = ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.gate_up", "feed_forward.down")


def why_not(net: GPT) -> str | None:
    """What of a network the C++ cannot compute as it is; None = nothing."""
    config, weight = net.config, net.token_embedding.weight
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return f"{weight.dtype} on {weight.device}"
    if config.moe is not None:
        return "mixtures of experts"
    for name in ("n_embd", "head_size", "hidden_size"):
        if getattr(config, name) % LANES:
            return f"{name}={getattr(config, name)}, no multiple of {LANES}"
    if config.head_size > WIDEST_HEAD:
        return f"head_size={config.head_size}, above {WIDEST_HEAD}"
    for name, module in net.named_modules():
        known = type(module) in (nn.Linear, QuantizedLinear)
        if name.endswith((*LAYERS, "head")) and not known:
            return f"{type(module).__name__} as {name}"
        if isinstance(module, QuantizedLinear) and module.group_size % GROUP and module.group_size < module.in_features:
            return f"groups of {module.group_size} in {name}, no multiple of {GROUP}"
    return None


class NativeRunner:
    """A network's steps in C++, for float32, bfloat16, int8 and int4 weights. Logits of a request are the same to the
    bit whatever else is in the step.

    Activations between layers and sums are float32; products take x in the weights' type, bfloat16 for weights with
    scales, or int8 rounded per row (W8A8: Dettmers et al., 2022, without outliers).

    Args:
        net: in evaluation mode, on the CPU; its weights are copied. Quantized layers (nn/quantized_linear.py) stay so.
        weights: type of the others; None = bfloat16 if that is the network's, else float32. int8 rounds every row of
            a matrix to the nearest (the embedding stays).
        threads: how many work; None = torch.get_num_threads() at every step.
        tiles: whether AMX may be used, where it is.

    Raises:
        ValueError: the network has something that the C++ does not know.
        RuntimeError: no compiler.
    """

    def __init__(
        self, net: GPT, weights: WeightType | None = None, threads: int | None = None, tiles: bool = True
    ) -> None:
        config = net.config
        if (missing := why_not(net)) is not None:
            raise ValueError(f"the C++ runner does not know {missing}: use TorchRunner")
        library = load_library()
        if library is None:
            raise RuntimeError("the C++ runner needs g++ on Linux (x86-64): install it, or use TorchRunner")
        self.config, self.device, self.threads = config, torch.device("cpu"), threads
        own = net.token_embedding.weight.dtype
        self.weights = weights or ("bfloat16" if own == torch.bfloat16 else "float32")
        self._exact = self.weights == "float32" and any(type(part) is nn.Linear for part in net.blocks.modules())
        self._library, self._kept = library, []
        shape = Shape(
            *(config.n_layer, config.n_head, config.kv_heads, config.head_size, config.n_embd, config.hidden_size),
            config.vocab_size,
            config.rotary_size if config.position == "rotary" else 0,
            *(NORMS.index(config.norm), PLACES.index(config.norm_place), ACTIVATIONS[config.feed_forward]),
            *(config.feed_forward in GATED, config.parallel_residual, config.qk_norm, config.value_skip),
            own == torch.bfloat16,
            *(config.norm_eps, config.score_scale, config.attention_softcap or 0, config.logit_softcap or 0),
            *(config.embedding_multiplier, config.residual_multiplier),
        )
        self._handle = library.network_new(ctypes.addressof(shape))
        weakref.finalize(self, library.network_free, self._handle)
        if not tiles:
            library.network_without_tiles(self._handle)
        self.uses_tiles = bool(library.network_uses_tiles(self._handle))
        with torch.no_grad():
            self._give(net)

    def make_cache(self, blocks: int, block_size: int = 16, dtype: torch.dtype | str | None = None) -> NativeCache:
        """As Runner; bfloat16 for networks whose layers have no float32 weights. Raises as NativeCache."""
        if dtype is None:
            dtype = torch.float32 if self._exact else torch.bfloat16
        return NativeCache(self.config, blocks, block_size, dtype)

    def forward(self, step: StepInput, cache: NativeCache, layers: int | None = None) -> Tensor:
        """As Runner.

        Args:
            layers: only so many, then the last norm and the head (early exit); None = all.

        Raises:
            IndexError: an id, position or block that is not there.
        """
        spans = step.spans
        self._check(step, cache)
        positions, places, tables = array("i"), array("i"), array("i")
        length = max(-(-(span.past + span.count) // cache.block_size) for span in spans)
        for span in spans:
            positions.extend(range(span.past, span.past + span.count))
            places.extend((span.start, span.count, span.past))
            tables.extend(span.blocks[:length])
            tables.extend([0] * (length - len(span.blocks)))
        ids, wanted = array("i", step.tokens), array("i", step.wanted)
        logits = torch.empty(len(wanted), self.config.vocab_size)
        rows = embeds = None
        if step.embeds:
            rows = array("i", [-1] * len(ids))
            for index, place in enumerate(step.embeds):
                rows[place] = index
            embeds = torch.stack([own.float() for own in step.embeds.values()])
        given = Step(
            *(len(ids), len(spans), length, len(wanted), layers or self.config.n_layer),
            self.threads or torch.get_num_threads(),
            *(_address(part) for part in (ids, positions, places, tables, wanted, rows)),
            None if embeds is None else embeds.data_ptr(),
            logits.data_ptr(),
            *(cache.code, cache.block_size, cache.address),
        )
        self._library.network_forward(self._handle, ctypes.addressof(given))
        return logits

    def _check(self, step: StepInput, cache: NativeCache) -> None:
        """What PyTorch would notice by itself: the C++ reads and writes wherever it is told."""
        if not 0 <= min(step.tokens) <= max(step.tokens) < self.config.vocab_size:
            raise IndexError(f"a token id is outside the vocabulary of {self.config.vocab_size}")
        for span in step.spans:
            end = span.past + span.count
            if end > self.config.block_size:
                raise IndexError(f"position {end - 1} is beyond block_size={self.config.block_size}")
            used = span.blocks[: -(-end // cache.block_size)]
            if len(used) * cache.block_size < end or not 0 <= min(used) <= max(used) < cache.blocks:
                raise IndexError(f"blocks {list(used)} do not hold {end} positions in a cache of {cache.blocks} blocks")

    def _give(self, net: GPT) -> None:
        """Hands over every weight."""
        config, blocks = net.config, net.blocks
        embedding = net.token_embedding.weight.detach()
        embedding = embedding if embedding.dtype == torch.bfloat16 else embedding.float()
        position = net.position_embedding.weight if config.position in ("learned", "sinusoidal") else None
        rotary = (net.rotary.cos_TD, net.rotary.sin_TD) if config.position == "rotary" else (None, None)
        slopes = net.slopes_H if config.position == "alibi" else None
        final = (None, None) if config.norm_place == "post" else _affine(net.final_norm)
        self._vector(-1, 0, embedding, embedding.dtype)
        for slot, vector in enumerate((position, *rotary, slopes, *final), start=1):
            self._vector(-1, slot, vector)
        for layer, block in enumerate(blocks):
            attention, ffn = block.attention, block.feed_forward
            sandwich = config.norm_place == "sandwich"
            vectors = [
                *_affine(block.attention_norm),
                *(_affine(block.attention_out_norm) if sandwich else (None, None)),
                *_affine(block.feed_forward_norm),
                *(_affine(block.feed_forward_out_norm) if sandwich else (None, None)),
                *(attention.q_gain, attention.k_gain, attention.sinks, attention.value_mix, block.input_mix),
            ]
            for slot, vector in enumerate(vectors):
                self._vector(layer, slot, vector)
            self._library.network_window(self._handle, layer, attention.window or 0)
            gated = config.feed_forward in GATED
            up = ffn.gate_up if gated else ffn.up
            order = _paired(config.hidden_size) if gated else None
            for slot, (linear, rows) in enumerate(
                ((attention.qkv, None), (attention.out, None), (up, order), (ffn.down, None))
            ):
                self._matrix(layer, slot, linear, rows)
        self._matrix(-1, 0, net.head, torch.arange(config.vocab_size))

    def _vector(self, layer: int, slot: int, vector: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
        if vector is None:
            return
        own = vector.detach().to(dtype, copy=True).contiguous()
        self._kept.append(own)
        self._library.network_vector(self._handle, layer, slot, own.data_ptr())

    def _matrix(self, layer: int, slot: int, linear: nn.Module, rows: Tensor | None) -> None:
        kind, weight, scale, group = self._form(linear)
        N, K = linear.weight.shape[0], linear.in_features
        rows = torch.arange(N) if rows is None else rows
        order = torch.full((-(-len(rows) // QUAD) * QUAD,), -1, dtype=torch.int32)
        order[: len(rows)] = rows
        bias = None if linear.bias is None else linear.bias.detach().float().contiguous()
        pointers = [None if part is None else part.data_ptr() for part in (weight, scale, bias, order)]
        self._library.network_matrix(self._handle, layer, slot, kind, N, K, group, *pointers, len(order))

    def _form(self, linear: nn.Module) -> tuple[int, Tensor, Tensor | None, int]:
        """Kind, weights, scales and group of a layer, as the C++ takes them."""
        weight, K = linear.weight.detach(), linear.in_features
        if weight.is_floating_point():
            if self.weights != "int8":
                return KINDS[self.weights], weight.to(getattr(torch, self.weights)).contiguous(), None, K
            weight = weight.float()
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            return KINDS["int8"], (weight / scale).round().to(torch.int8), scale.contiguous(), K
        scale = linear.scale.detach().float().contiguous()
        if linear.act_bits == 8:
            return KINDS["int8"], weight.contiguous(), scale, K
        return (W8 if linear.bits == 8 else W4), weight.contiguous(), scale, linear.group_size


def _affine(norm: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Gain and shift."""
    return norm.weight, getattr(norm, "bias", None)


def _paired(hidden: int) -> Tensor:
    """Rows of a gate-and-up matrix in the order that lets a gate meet its up: sixteen of each in turn."""
    gate = torch.arange(hidden).view(-1, 1, LANES)
    return torch.cat((gate, gate + hidden), dim=1).flatten()


def _address(part: array | None) -> int | None:
    return None if part is None else part.buffer_info()[0]
