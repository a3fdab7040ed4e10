"""What one Hugging Face architecture is to us: its config.json and a table of its tensors.

A table maps every tensor of theirs to ours, row for row, so export and import are the same table read in two
directions, and whatever is missing or left over on either side can be named.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.nn import GPTConfig


@dataclass(frozen=True)
class TensorMap:
    """One tensor of ours and the tensors of theirs that hold it."""

    ours: str | None
    """Name in our state_dict; None = a constant that ours does without (a zero bias, a gain of one)."""
    theirs: tuple[str, ...]
    """Names in their state_dict; several are stacked by rows in ours."""
    shape: tuple[int, ...]
    """Of ours, before any transposition, without padded rows; a stack of experts as its rows one below the other."""
    rows: tuple[int, ...] = ()
    """How many rows each of `theirs` takes, when there are several."""
    transposed: bool = False
    """Whether theirs is (in, out) where ours is (out, in)."""
    repeated: bool = False
    """Whether each of `theirs` is a copy of ours instead of a part."""
    stack: int = 0
    """Length of our first dimension when ours is a stack of matrices: `shape` has it folded into the rows."""
    fill: float = 0.0
    """Value of a constant, when `ours` is None."""
    optional: bool = False
    """Whether files may leave it out in all layers; it is zero then."""


@dataclass(frozen=True)
class Family:
    """A Hugging Face architecture."""

    model_type: str
    """As in config.json."""
    architecture: str
    """The transformers class of the causal language model."""
    obstacles: Callable[[GPTConfig], list[str]]
    """Fields of a GPTConfig that this architecture has no counterpart for, as `field=value`."""
    to_config: Callable[[GPTConfig], dict[str, Any]]
    """GPTConfig -> config.json without model_type, architectures and token ids."""
    from_config: Callable[[dict[str, Any]], GPTConfig]
    """config.json -> GPTConfig; ValueError for a setting that we lack."""
    tensors: Callable[[GPTConfig], Iterator[TensorMap]]
    """The table."""
    derived: tuple[str, ...] = ()
    """Endings of tensors that some files carry and that follow from the configuration."""
    prefix: str = ""
    """Start of the names that files saved from the bare body, without the head, leave out."""


SHAPE_FIELDS = (
    *("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "ffn_hidden", "ffn_multiple", "vocab_multiple"),
    *("tie_embeddings", "bias", "norm_eps", "norm_affine", "dropout", "initialization", "init_std"),
    *("position", "norm", "feed_forward"),
)
"""Fields that every family writes down or that do not change the function; position, norm and feed_forward with
values of its own."""


def beyond(config: GPTConfig, expressible: Collection[str]) -> list[str]:
    """Fields outside SHAPE_FIELDS and `expressible` that are not at their default, as `field=value`."""
    found = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in SHAPE_FIELDS and field.name not in expressible and value != field.default:
            found.append(f"{field.name}={value:g}" if isinstance(value, float) else f"{field.name}={value}")
    return found


def outside(config: GPTConfig, **allowed: Collection[str]) -> list[str]:
    """Fields whose value is not among the allowed ones, as `field=value`."""
    values = {name: getattr(config, name) for name in allowed}
    return [f"{name}={value}" for name, value in values.items() if value not in allowed[name]]


def export_tensors(family: Family, config: GPTConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state_dict -> theirs, contiguous, padded vocabulary rows cut."""
    dtype = state["token_embedding.weight"].dtype
    exported = {}
    for entry in family.tensors(config):
        if entry.ours is None:
            exported |= {name: torch.full(entry.shape, entry.fill, dtype=dtype) for name in entry.theirs}
            continue
        tensor = state[entry.ours].detach().cpu()
        tensor = tensor.flatten(0, 1) if entry.stack else tensor[: entry.shape[0]]
        if entry.repeated:
            parts = [tensor.clone() for _ in entry.theirs]
        else:
            parts = tensor.split(entry.rows) if entry.rows else (tensor,)
        for name, part in zip(entry.theirs, parts, strict=True):
            exported[name] = (part.T if entry.transposed else part).contiguous()
    return exported


def import_tensors(family: Family, config: GPTConfig, found: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Their tensors -> our state_dict.

    Args:
        family: which architecture.
        config: our network.
        found: their tensors by name.
        source: file or directory, for messages.

    Raises:
        ValueError: missing, left-over or misshapen tensors, by name.
    """
    table = list(family.tensors(config))
    if family.prefix and not any(name.startswith(family.prefix) for name in found):
        found = {name if name == "lm_head.weight" else family.prefix + name: value for name, value in found.items()}
    expected = {name: entry for entry in table for name in entry.theirs}
    kinds = {_without_layer(name) for name in found}
    missing = [
        name
        for name, entry in expected.items()
        if name not in found and not (entry.optional and _without_layer(name) not in kinds)
    ]
    head = {"lm_head.weight"} if config.tie_embeddings else set()  # a second copy of the embedding
    extra = [name for name in found if name not in expected and name not in head and not name.endswith(family.derived)]
    for what, names in (("lacks", missing), ("has unexpected", extra)):
        if names:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise ValueError(f"{source} {what} tensor(s) {shown}: its config.json describes another network")
    dtype = next((tensor.dtype for tensor in found.values() if tensor.is_floating_point()), torch.float32)
    state = {}
    for entry in table:
        parts = [_part(entry, i, found[name], name, source) for i, name in enumerate(entry.theirs) if name in found]
        if entry.ours is None:
            if any((part != entry.fill).any() for part in parts):
                raise ValueError(
                    f"{source}: {entry.theirs[0]} is not all {entry.fill:g}, which the network described there cannot "
                    "hold: remove the key 'lightning_gpt' from its config.json if another program trained it"
                )
            continue
        if not parts:
            state[entry.ours] = torch.zeros(entry.shape, dtype=dtype)
            continue
        if entry.repeated and any(not torch.equal(part, parts[0]) for part in parts[1:]):
            raise ValueError(f"{source}: {' and '.join(entry.theirs)} must be equal for {config.feed_forward}")
        state[entry.ours] = parts[0] if len(parts) == 1 or entry.repeated else torch.cat(parts)
        if entry.stack:
            state[entry.ours] = state[entry.ours].unflatten(0, (entry.stack, -1))
    for name in ("token_embedding.weight", "head.weight"):
        if name in state and (padding := config.padded_vocab_size - config.vocab_size):
            state[name] = torch.nn.functional.pad(state[name], (0, 0, 0, padding))
    if config.tie_embeddings:
        state["head.weight"] = state["token_embedding.weight"]
    return state


def _without_layer(name: str) -> str:
    """A tensor's name with its layer number left out."""
    return re.sub(r"\.\d+\.", ".N.", name)


def _part(entry: TensorMap, index: int, tensor: Tensor, name: str, source: str) -> Tensor:
    """One of their tensors, turned and checked."""
    if entry.transposed:
        tensor = tensor.T
    shape = (entry.rows[index], *entry.shape[1:]) if entry.rows else entry.shape
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{source}: {name} has shape {tuple(tensor.shape)} where config.json asks for {shape}")
    return tensor.contiguous()
