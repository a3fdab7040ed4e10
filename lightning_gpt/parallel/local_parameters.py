"""Modules that know nothing of DTensors compute with plain ones: a parameter is its local part while its module runs.

Every parameter of a spread network is a DTensor, so that optimizers, norms and checkpoints meet one kind. Where a
module uses one that all ranks of a mesh hold alike, or whose part is all that it needs, its hooks put the plain tensor
in the parameter's place for the time of the call.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor, nn

Locally = Callable[[Tensor], Tensor]
"""Parameter -> what the module computes with, differentiable."""


def local(parameter: Tensor) -> Tensor:
    """This rank's part of a DTensor, or what else it is, as it is; differentiable."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def use_locally(module: nn.Module, parts: dict[str, Locally], within: nn.Module | None = None) -> None:
    """Lets a module find plain tensors under the names of its parameters while it, or one that it is in, runs.

    Args:
        module: has the parameters.
        parts: by name; used again on the same parameter, the later part is made from the earlier one.
        within: gets the hooks; None = the module itself.
    """

    def before(_: nn.Module, args: Any) -> None:
        for name, part in parts.items():  # an attribute of the object hides the parameter of that name
            module.__dict__[name] = part(module.__dict__.get(name, module._parameters[name]))

    def after(_: nn.Module, args: Any, output: Any) -> None:
        for name in parts:
            module.__dict__.pop(name, None)

    within = module if within is None else within
    within.register_forward_pre_hook(before)
    within.register_forward_hook(after, always_call=True)


def used_by_method(owner: nn.Module, method: str, module: nn.Module, name: str) -> None:
    """As use_locally for a parameter that a method of another module reaches into.

    Args:
        owner: whose method it is.
        method: its name; replaced by a wrapper.
        module: has the parameter.
        name: of the parameter.
    """
    original = getattr(owner, method)

    @wraps(original)
    def with_plain(*args: Any, **kwargs: Any) -> Any:
        module.__dict__[name] = local(module._parameters[name])
        try:
            return original(*args, **kwargs)
        finally:
            module.__dict__.pop(name, None)

    setattr(owner, method, with_plain)
