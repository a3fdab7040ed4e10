"""Comparisons that say what differs, and not what would be right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning_gpt.learning.exercise import Wrong

if TYPE_CHECKING:
    from torch import Tensor


def function(module: Any, name: str) -> Callable:
    """The learner's function, or class.

    Raises:
        Wrong: the file has none of that name.
    """
    found = getattr(module, name, None)
    if not callable(found):
        raise Wrong(f"the file has no function {name}: keep the name of the stub")
    return found


def same(what: str, given: Any, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """A tensor equals the reference.

    Args:
        what: for the message.
        given: the learner's.
        wanted: the reference.
        tolerance: largest absolute difference, for values of about 1; larger ones are compared relatively.

    Raises:
        Wrong: it is no tensor, of another shape, not finite, or differs.
    """
    import torch

    if given is None:
        raise Wrong(f"{what}: nothing is returned (None)")
    if not isinstance(given, torch.Tensor):
        raise Wrong(f"{what}: a {type(given).__name__} is returned, a tensor of shape {tuple(wanted.shape)} is wanted")
    if given.shape != wanted.shape:
        raise Wrong(f"{what}: the shape is {tuple(given.shape)}, wanted is {tuple(wanted.shape)}")
    given, wanted = given.detach().double(), wanted.detach().double()
    if not torch.isfinite(given).all():
        raise Wrong(f"{what}: {int((~torch.isfinite(given)).sum())} of {given.numel()} numbers are NaN or infinite")
    if not given.numel():
        return
    gap = (given - wanted).abs() / wanted.abs().clamp(min=1)
    if gap.max() > tolerance:
        place = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
        raise Wrong(
            f"{what}: differs from the reference by up to {gap.max():.2g} (at {list(place)}; allowed is {tolerance:g})"
        )


def close(what: str, given: Any, wanted: float, relative: float = 1e-6, absolute: float = 1e-9) -> None:
    """A number is near the reference; the message says only how far off it is.

    Raises:
        Wrong: it is missing, no number, or too far.
    """
    value = number(what, given)
    if math.isclose(value, wanted, rel_tol=relative, abs_tol=absolute):
        return
    if wanted == 0 or value == 0 or (value < 0) != (wanted < 0):
        raise Wrong(f"{what}: {value:.6g} is wrong")
    share = value / wanted - 1
    off = f"{abs(share):.1%}" if abs(share) < 0.95 else f"a factor of {max(value / wanted, wanted / value):.3g}"
    raise Wrong(f"{what}: {value:.6g} is too {'large' if abs(value) > abs(wanted) else 'small'}, by {off}")


def number(what: str, given: Any) -> float:
    """A finite number; tensors and numpy's of one element, and texts such as 1e21 (YAML reads those as text), count.

    Raises:
        Wrong: it is missing or none.
    """
    if given is None:
        raise Wrong(f"{what}: not filled in yet")
    if isinstance(given, bool):
        raise Wrong(f"{what}: {given} is no number")
    try:
        value = float(given)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{what}: {str(given)[:60]!r} is no number") from None
    if not math.isfinite(value):
        raise Wrong(f"{what}: {value} is not finite")
    return value


def equal(what: str, given: Any, wanted: Any) -> None:
    """Exactly the reference: for lists and whole numbers, which are shown, being short.

    Raises:
        Wrong: anything else.
    """
    if given is None and wanted is not None:
        raise Wrong(f"{what}: nothing is returned (None)")
    if hasattr(given, "tolist"):
        given = given.tolist()
    if type(given) is tuple and isinstance(wanted, list):
        given = list(given)
    if given != wanted:
        shown = repr(given)
        raise Wrong(f"{what}: {shown if len(shown) < 80 else shown[:77] + '...'} is wrong")


def untouched(what: str, before: Tensor, after: Tensor) -> None:
    """An argument still holds what it held.

    Raises:
        Wrong: it was changed in place.
    """
    import torch

    if not torch.equal(before, after):
        raise Wrong(f"{what} was changed in place: the caller still needs it")
