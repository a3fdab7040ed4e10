"""Where a number first ceases to be finite: found by running the batch again with an eye on every module."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def locate_non_finite(
    network: nn.Module,
    compute_loss: Callable[[], Tensor],
    precision: Callable[[], AbstractContextManager] = nullcontext,
) -> str | None:
    """Names the first module whose output, or in the backward pass whose gradient, is NaN or infinite.

    Looks in this order: at the weights, at the forward pass, at the loss, at the backward pass, at the gradients that
    are left from the step that failed. Overwrites the gradients when it comes to the backward pass.

    Args:
        network: whose modules are watched.
        compute_loss: runs the batch again; may raise once the loss is not finite.
        precision: in which it is run.

    Returns:
        a phrase such as "the output of blocks.1.feed_forward.down"; None: this time all was finite.
    """
    broken = [name for name, parameter in network.named_parameters() if not _finite(parameter)]
    if broken:
        return f"the weights {broken[0]}" + (f" (and {len(broken) - 1} more)" if len(broken) > 1 else "")
    left_over = [name for name, p in network.named_parameters() if p.grad is not None and not _finite(p.grad)]
    found: list[str] = []
    handles = [module.register_forward_hook(_watch_output(name, found)) for name, module in _named(network)]
    loss = None
    try:
        with torch.enable_grad(), precision(), torch.compiler.set_stance("force_eager"):
            loss = compute_loss()
    except RuntimeError:  # the task looks at its loss itself
        pass
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    if loss is None or not _finite(loss):
        return "the loss, computed from finite states and weights"
    return _in_backward(network, compute_loss, precision) or (
        f"the gradient of {left_over[-1]}, but not of this batch alone" if left_over else None
    )


def _in_backward(
    network: nn.Module, compute_loss: Callable[[], Tensor], precision: Callable[[], AbstractContextManager]
) -> str | None:
    found: list[str] = []
    network.zero_grad(set_to_none=True)
    handles = [module.register_full_backward_hook(_watch_gradient(name, found)) for name, module in _named(network)]
    try:
        with warnings.catch_warnings(), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            warnings.filterwarnings(
                "ignore", message="Full backward hook is firing"
            )  # embeddings: their inputs are ids
            with precision():
                loss = compute_loss()
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    # In the order of the backward pass: what is used last has its gradient first.
    broken = [name for name, p in network.named_parameters() if p.grad is not None and not _finite(p.grad)]
    return f"the gradient of {broken[-1]}" if broken else None


def _named(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules inside the network; lists of modules are never called."""
    return [(name, module) for name, module in network.named_modules() if name]


def _finite(value: Any) -> bool:
    """Whether all floating-point numbers in a tensor, or a tuple or list of them, are finite."""
    if isinstance(value, tuple | list):
        return all(map(_finite, value))
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(torch.isfinite(value).all())


def _watch_output(name: str, found: list[str]) -> Callable:
    def look(module: nn.Module, inputs: tuple, output: Any) -> None:
        # A module ends before the one around it, so the innermost is the first to be found.
        if not found and not _finite(output):
            kind = type(module).__name__
            found.append(f"the output of {name} ({kind})" if _finite(inputs) else f"the input of {name} ({kind})")

    return look


def _watch_gradient(name: str, found: list[str]) -> Callable:
    def look(module: nn.Module, to_inputs: tuple, from_output: tuple) -> None:
        if not found and _finite(from_output):
            own = [
                one for one, p in module.named_parameters(recurse=False) if p.grad is not None and not _finite(p.grad)
            ]
            if not _finite(to_inputs):
                found.append(f"the gradient inside {name} ({type(module).__name__})")
            elif own:
                found.append(f"the gradient of {name}.{own[0]}")
        elif not found:
            found.append(f"the gradient at the output of {name} ({type(module).__name__})")

    return look
