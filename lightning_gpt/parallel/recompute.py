"""Activation checkpointing (Chen et al., 2016, arXiv:1604.06174), applied to a network from outside: what a block keeps
for its backward pass is let go and computed again there, or kept in the host's memory.

A block's `forward` is replaced on the instance, so every parameter keeps its name. It is done before `fully_shard`:
FSDP2's hooks then lie around the checkpoint, and a block is gathered before it is computed again.

| setting        | what is kept from the forward to the backward pass                                          |
|----------------|---------------------------------------------------------------------------------------------|
| 0              | everything                                                                                  |
| n, or "full"   | of every n-th block (full: of every block) its input                                        |
| "selective"    | of every block results of products with weights and of fused attention (selective.py)       |
| "attention"    | everything but the insides of attention: where attention is written out, its T x T weights  |
| "feed_forward" | everything but the insides of the feed-forward                                              |
| 0.5, "2GiB"    | at most that share, or so many bytes: recompute_budget.py chooses for every block           |
| "offload"      | everything, in the host's memory                                                            |
| "full_offload" | of every block its input, in the host's memory                                              |

Gradients are those of 0 bit for bit: the same operations run on the same numbers, dropout included (the generators are
set back). Without gradients - validation, generation - nothing is changed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from lightning_gpt.nn import GPT
from lightning_gpt.nn.attention import Pass
from lightning_gpt.parallel.memory_size import parse_memory
from lightning_gpt.parallel.offload import host_memory
from lightning_gpt.parallel.recompute_budget import BudgetedBlocks
from lightning_gpt.parallel.selective import save_products

RecomputeSetting = int | float | str
"""As model.activation_checkpointing."""
MODES = ("full", "selective", "attention", "feed_forward", "offload", "full_offload")

_SEES_KEPT = {"respect_saved_tensors_hooks": True} if "respect_saved" in str(signature(checkpoint)) else {}
"""From torch 2.12 on: what is kept selectively passes through saved-tensor hooks as what autograd keeps does."""


@dataclass(frozen=True)
class Recompute:
    """A checked setting."""

    mode: str = "none"
    """none, budget or one of MODES."""
    every: int = 1
    """full: of which blocks."""
    budget: float | int = 0
    """budget: a share (float), or bytes (int)."""

    @classmethod
    def of(cls, setting: RecomputeSetting) -> "Recompute":
        """Of model.activation_checkpointing.

        Raises:
            ValueError: naming what is understood.
        """
        known = f"0 (off), n (every n-th block), {', '.join(MODES)}, a share between 0 and 1, or bytes such as 2GiB"
        refused = ValueError(f"activation_checkpointing={setting} is not understood: use {known}")
        if isinstance(setting, bool):
            raise refused
        if isinstance(setting, int):
            if setting < 0:
                raise ValueError(f"activation_checkpointing={setting} must be 0 (off) or a positive count")
            return cls("full", setting) if setting else cls()
        if isinstance(setting, float):
            if not 0 < setting < 1:
                raise ValueError(
                    f"activation_checkpointing={setting} must be a share between 0 and 1 of what is kept without it, "
                    "or a whole number: 0 (off), 1 (every block)"
                )
            return cls("budget", budget=setting)
        if setting in MODES:
            return cls(setting)
        try:
            return cls("budget", budget=parse_memory(setting))
        except ValueError:
            raise refused from None

    def modes(self, layers: int) -> list[str]:
        """Of every block, where no budget decides."""
        if self.mode == "full":
            return ["full" if layer % self.every == 0 else "none" for layer in range(layers)]
        return [self.mode] * layers


def recompute(net: GPT, setting: RecomputeSetting, compile: bool = False) -> None:
    """Applies a setting to a network's blocks in place, instead of the one before.

    Args:
        net: before it is sharded, compiled or run.
        setting: see the table.
        compile: whether its loss or its blocks will be compiled: a share as budget is then kept by the compiler's
            partitioner, which sees every operation (torch's activation_memory_budget, a setting of the process).

    Raises:
        ValueError: as Recompute.of; for the compiler a budget in bytes, or the host's memory.
    """
    chosen = Recompute.of(setting)
    if compile and chosen.mode in ("offload", "full_offload"):
        raise ValueError(
            f"activation_checkpointing={setting} with compile=true: compiled blocks do not move what they keep; use "
            "compile=false, or full or a share such as 0.5"
        )
    if compile and isinstance(chosen.budget, int) and chosen.budget:
        raise ValueError(
            f"activation_checkpointing={setting} with compile=true: the compiler takes a share, such as 0.5, not bytes"
        )
    if compile:
        from torch._functorch import config

        config.activation_memory_budget = chosen.budget or 1.0
    for block in net.blocks:
        for module in (block, block.attention, block.feed_forward):
            vars(module).pop("forward", None)
    if chosen.mode == "budget" and not compile:
        budgeted = BudgetedBlocks(len(net.blocks), chosen.budget, FORWARDS)
        for layer, block in enumerate(net.blocks):
            block.forward = partial(_training_only, block, partial(budgeted.run, layer, block), block.forward)
    for block, mode in zip(net.blocks, chosen.modes(len(net.blocks))):
        if mode in ("none", "budget"):
            continue
        module = getattr(block, mode) if mode in ("attention", "feed_forward") else block
        module.forward = partial(_training_only, module, FORWARDS[mode], module.forward)


def _training_only(module: nn.Module, run: Callable[..., Any], forward: Callable[..., Any], *args: Any) -> Any:
    """`run(forward, *args)` where there will be a backward pass; a cache would be filled twice."""
    cached = any(isinstance(one, Pass) and one.cache is not None for one in args)
    if not module.training or cached or not torch.is_grad_enabled():
        return forward(*args)
    return run(forward, *args)


def _checkpointed(forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    device = next(one.device for one in args if isinstance(one, torch.Tensor)).type
    run = partial(checkpoint, forward, *args, use_reentrant=False, **_SEES_KEPT, **options)
    if torch.compiler.is_compiling() or not torch.is_autocast_enabled(device):
        return run()
    # Autocast's copies of weights would be kept to the end of the forward pass for a second use that never comes, and
    # a block that finds them would not do the same operations as when it is computed again.
    with torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False):
        return run()


def _offloaded(forward: Callable[..., Any], *args: Any) -> Any:
    with host_memory(forward):
        return forward(*args)


def _full_offload(forward: Callable[..., Any], *args: Any) -> Any:
    with host_memory(forward):
        return _checkpointed(forward, *args)


def _whole(forward: Callable[..., Any], *args: Any) -> Any:
    return forward(*args)


FORWARDS: dict[str, Callable[..., Any]] = {
    "none": _whole,
    "full": _checkpointed,
    "attention": _checkpointed,
    "feed_forward": _checkpointed,
    "selective": partial(_checkpointed, context_fn=partial(create_selective_checkpoint_contexts, save_products)),
    "offload": _offloaded,
    "full_offload": _full_offload,
}
"""How a module's forward is run."""
