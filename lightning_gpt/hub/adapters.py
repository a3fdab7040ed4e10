"""Low-rank adapters through peft: put into a network, switched off, merged, saved in peft's format and read back.

Legend: a layer's W (out, in) becomes W + scale B A, A (rank, in) and B (out, rank); only A and B learn.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_gpt.nn import GPT

# It warns, where peft imports it, of a kernel that nobody asked for; it has another.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

LAYERS = ("qkv", "out", "up", "gate_up", "down")
"""Names of the linear layers inside a block."""
PEFT_PREFIX = "base_model.model."
ADAPTER_CONFIG = "adapter_config.json"
BASE_FILE = "adapter_base.json"


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation (Hu et al., 2021) of the linear layers inside the blocks.

    Raises:
        ValueError: a value outside its range.
    """

    rank: int = 16
    """r: rows of A, columns of B."""
    alpha: float = 32.0
    """The adapter's product is scaled by alpha / rank."""
    dropout: float = 0.0
    """Of the adapter's input, while training."""
    layers: tuple[str, ...] = LAYERS
    """Which layers get one: of qkv (queries, keys and values are one matrix), out, up, gate_up, down."""
    rank_stabilized: bool = False
    """rsLoRA (Kalajdzievski, 2023): scale alpha / sqrt(rank), so that large ranks still learn."""
    decomposed: bool = False
    """DoRA (Liu et al., 2024): the direction is adapted, the magnitude of each row learnt apart."""
    quantization: Literal["nf4", "fp4"] | None = None
    """QLoRA (Dettmers et al., 2023): keep the frozen weights of these layers in four bits; null = as they are."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank} must be at least 1")
        if self.alpha <= 0:
            raise ValueError(f"lora.alpha={self.alpha} must be positive")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout={self.dropout} is no probability: use 0 <= dropout < 1")
        if unknown := set(self.layers) - set(LAYERS):
            raise ValueError(f"lora.layers names {', '.join(sorted(unknown))}: use some of {', '.join(LAYERS)}")

    @classmethod
    def of(cls, values: dict[str, Any]) -> LoRA:
        """From a checkpoint's plain values."""
        return cls(**(values | {"layers": tuple(values["layers"])}))

    def peft_config(self, net: GPT) -> Any:
        """The same as peft's LoraConfig.

        Raises:
            ValueError: peft is not installed, or no layer of the network is named.
        """
        try:
            from peft import LoraConfig
        except ImportError:
            raise ValueError("adapters need peft: pip install 'lightning_gpt[align]'") from None
        targets = sorted({name.rpartition(".")[2] for name, _ in linear_layers(net, self.layers)})
        if not targets:
            raise ValueError(f"lora.layers={list(self.layers)}: the network has no such linear layer")
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            use_rslora=self.rank_stabilized,
            use_dora=self.decomposed,
        )


def linear_layers(net: nn.Module, names: tuple[str, ...] = LAYERS) -> list[tuple[str, nn.Linear]]:
    """Linear layers inside blocks whose last name is among `names`."""
    return [
        (name, module)
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and name.rpartition(".")[2] in names
    ]


def add_adapters(net: GPT, lora: LoRA) -> None:
    """Freezes the network and puts fresh adapters (B = 0: no change yet) into it, in place."""
    from peft import inject_adapter_in_model

    config = lora.peft_config(net)
    net.requires_grad_(False)
    if lora.quantization is not None:
        quantize(net, lora.layers, lora.quantization)
        net.is_loaded_in_4bit = True  # by which peft chooses its layer
    inject_adapter_in_model(config, net)


def quantize(net: GPT, names: tuple[str, ...], kind: str) -> None:
    """Replaces linear layers inside blocks by bitsandbytes' four-bit ones, in place; runs on CPU too.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise ValueError("lora.quantization needs bitsandbytes: pip install 'lightning_gpt[quant]'") from None
    for name, linear in linear_layers(net, names):
        device, dtype = linear.weight.device, linear.weight.dtype
        small = Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=dtype, quant_type=kind
        )
        small.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type=kind)
        if linear.bias is not None:
            small.bias = nn.Parameter(linear.bias.data, requires_grad=False)
        owner, _, own = name.rpartition(".")
        setattr(net.get_submodule(owner), own, small.to(device))


def adapters(net: nn.Module) -> list[tuple[str, Any]]:
    """The adapted layers by name; none without adapters."""
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError:
        return []
    return [(name, module) for name, module in net.named_modules() if isinstance(module, LoraLayer)]


@contextmanager
def adapters_off(net: nn.Module) -> Iterator[None]:
    """Inside it the network is the one before adaptation: the reference of PPO and DPO costs no second copy."""
    layers = adapters(net)
    for _, layer in layers:
        layer._disable_adapters = True  # enable_adapters() would also change what requires gradients
    try:
        yield
    finally:
        for _, layer in layers:
            layer._disable_adapters = False


@torch.no_grad()
def merge_adapters(net: GPT) -> GPT:
    """Makes W + scale B A the weights again, in place; four-bit weights become floating-point ones."""
    for name, layer in adapters(net):
        layer.merge(safe_merge=True) if type(layer).__name__ == "Linear" else _merge_quantized(layer)
        base = layer.get_base_layer()
        owner, _, own = name.rpartition(".")
        setattr(net.get_submodule(owner), own, base)
    net.is_loaded_in_4bit = False
    return net.requires_grad_(True)


def _merge_quantized(layer: Any) -> None:
    """peft would round the sum to four bits again; the merged weight is kept as it is."""
    from bitsandbytes.functional import dequantize_4bit

    base = layer.get_base_layer()
    dtype = base.compute_dtype or torch.float32
    weight = dequantize_4bit(base.weight.data, base.weight.quant_state).to(dtype)
    plain = nn.Linear(base.in_features, base.out_features, base.bias is not None, device=weight.device, dtype=dtype)
    plain.weight.data = weight
    if base.bias is not None:
        plain.bias.data = base.bias.data
    for adapter in layer.active_adapters:
        delta = layer.get_delta_weight(adapter)
        if adapter in getattr(layer, "lora_magnitude_vector", {}):
            magnitude = layer.lora_magnitude_vector[adapter]
            norm = magnitude.get_weight_norm(weight, delta, scaling=1)
            plain.weight.data = (magnitude.weight / norm).view(-1, 1) * (weight + delta)
        else:
            plain.weight.data = weight + delta
    layer.base_layer = plain


def trainable_state(net: nn.Module) -> dict[str, Tensor]:
    """Parameters that learn, by name."""
    return {name: parameter.detach() for name, parameter in net.named_parameters() if parameter.requires_grad}


def base_fingerprint(net: nn.Module) -> str:
    """SHA-256 of a sample of every weight that is no adapter's: tells bases apart without reading all of them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        if ".lora_" in name or not torch.is_floating_point(tensor) or ".weight." in name:
            continue
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, len(flat) // 97)].float().cpu()
        digest.update(f"{name.replace('.base_layer', '')} {tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def save_adapter(directory: str | Path, net: GPT, lora: LoRA, base: str, fingerprint: str) -> None:
    """Writes adapter_config.json and adapter_model.safetensors as peft does, and which base they belong to.

    Args:
        directory: where; an older adapter there is replaced.
        net: with adapters.
        lora: their settings.
        base: path or name of the model they were put into.
        fingerprint: of it (`base_fingerprint`, before it was changed).
    """
    from peft import get_peft_model_state_dict

    directory = Path(directory)
    if directory.exists() and not (directory / ADAPTER_CONFIG).exists() and any(directory.iterdir()):
        raise ValueError(f"{directory} exists and is no adapter: choose another place")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        config = net.peft_config["default"] if hasattr(net, "peft_config") else lora.peft_config(net)
        config.base_model_name_or_path = base
        config.save_pretrained(temporary)
        state = get_peft_model_state_dict(net, save_embedding_layers=False)
        named = {PEFT_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        save_file(named, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        about = {"base": base, "fingerprint": fingerprint, "lora": asdict(lora)}
        (temporary / BASE_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        if directory.exists():
            shutil.rmtree(directory)
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_adapter(directory: str | Path, net: GPT) -> None:
    """Puts a saved adapter into its base, in place.

    Args:
        directory: what `save_adapter` wrote, or peft for a network of ours.
        net: the base.

    Raises:
        ValueError: the adapter belongs to another base, or does not fit.
    """
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    directory = Path(directory)
    about = json.loads((directory / BASE_FILE).read_text()) if (directory / BASE_FILE).exists() else {}
    if about and about["fingerprint"] != base_fingerprint(net):
        raise ValueError(
            f"{directory} is an adapter of another base ({about['base']}) than the network given: name that one"
        )
    config = LoraConfig.from_pretrained(directory)
    net.requires_grad_(False)
    inject_adapter_in_model(config, net)
    state = load_file(directory / "adapter_model.safetensors")
    result = set_peft_model_state_dict(net, {name.removeprefix(PEFT_PREFIX): t for name, t in state.items()})
    missing = [name for name in result.missing_keys if ".lora_" in name]
    if result.unexpected_keys or missing:
        wrong = [*result.unexpected_keys, *missing]
        raise ValueError(f"{directory} does not fit the network: {', '.join(wrong[:4])}")
