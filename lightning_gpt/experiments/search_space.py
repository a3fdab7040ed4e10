"""What a search may vary: a range or a list of choices for each dotted setting."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lightning_gpt.experiments.spec_checks import checked_list, nearest

RANGE_FIELDS = ("low", "high", "log", "step", "int")
FORMS = "{low: 1e-4, high: 1e-2, log: true}, {low: 0, high: 100, step: 10} or {choices: [a, b]}"


class Dimension(Protocol):
    """What one setting may be."""

    def distribution(self) -> Any:
        """Optuna's."""

    def value(self, drawn: Any) -> Any:
        """What Optuna drew -> the setting's value."""

    def drawn(self, value: Any) -> Any:
        """Inverse of `value`.

        Raises:
            ValueError: the dimension does not hold this value.
        """

    def examples(self) -> list[Any]:
        """Values with which the setting can be tried: ends of a range, all choices."""

    def text(self) -> str:
        """For reports."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included."""

    low: float
    high: float
    log: bool = False
    """Uniform in the logarithm: for what matters by its factor, as learning rates do."""
    step: float | None = None
    """Only low, low + step, low + 2 step, ..."""
    int: bool = False
    """Whole numbers."""

    def distribution(self) -> Any:
        """Optuna's."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.int:
            return IntDistribution(self.low, self.high, log=self.log, step=self.step or 1)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def value(self, drawn: float) -> float:
        """The number; four significant digits are kept of one that has no steps, as nobody sets a rate finer."""
        if self.int:
            return int(drawn)
        rounded = float(f"{drawn:.12g}") if self.step else float(f"{drawn:.4g}")
        return min(max(rounded, self.low), self.high)

    def drawn(self, value: Any) -> float:
        """The number, if it is in the range.

        Raises:
            ValueError: it is not.
        """
        number = not isinstance(value, bool) and isinstance(value, int if self.int else int | float)
        if not number or not self.low <= value <= self.high:
            raise ValueError(f"{value!r} is not in {self.text()}")
        if self.step and abs((steps := (value - self.low) / self.step) - round(steps)) > 1e-9:
            raise ValueError(f"{value!r} is not in {self.text()}")
        return value

    def examples(self) -> list[float]:
        """Both ends."""
        return [self.low, self.high]

    def grid(self) -> list[float] | None:
        """Every value; None: they cannot be counted."""
        step = self.step or (1 if self.int and not self.log else None)
        if step is None:
            return None
        return [self.value(self.low + i * step) for i in range(math.floor((self.high - self.low) / step + 1e-9) + 1)]

    def text(self) -> str:
        """[1e-4, 1e-2], logarithmic."""
        kind = ", whole numbers" if self.int else ""
        kind += ", logarithmic" if self.log else ""
        kind += f", in steps of {self.step:g}" if self.step else ""
        return f"[{self.low:g}, {self.high:g}]{kind}"


@dataclass(frozen=True)
class Choices:
    """One of a few values of any kind; Optuna sees them as text, since it stores no lists or mappings."""

    values: tuple[Any, ...]

    def distribution(self) -> Any:
        """Optuna's."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([json.dumps(value) for value in self.values])

    def value(self, drawn: str) -> Any:
        """The choice of that text."""
        return json.loads(drawn)

    def drawn(self, value: Any) -> str:
        """Its text.

        Raises:
            ValueError: it is none of them.
        """
        if value not in self.values:
            raise ValueError(f"{value!r} is none of {self.text()}")
        return json.dumps(value)

    def examples(self) -> list[Any]:
        """All."""
        return list(self.values)

    def grid(self) -> list[str]:
        """All, as Optuna sees them."""
        return [json.dumps(value) for value in self.values]

    def text(self) -> str:
        """a, b or c."""
        return ", ".join(json.dumps(value) for value in self.values)


def checked_space(value: Any) -> dict[str, Range | Choices]:
    """Dotted setting -> what it may be.

    Raises:
        ValueError: one line that names the setting, the field and the mend.
    """
    if not isinstance(value, dict) or not value:
        raise ValueError(f"space={value!r} must map at least one dotted setting to {FORMS}")
    return {str(key): _dimension(f"space.{key}", one) for key, one in value.items()}


def _dimension(where: str, value: Any) -> Range | Choices:
    if not isinstance(value, dict):
        raise ValueError(f"{where}={value!r} must be {FORMS}")
    for name in value:
        if name not in (*RANGE_FIELDS, "choices"):
            raise ValueError(f"{where}: unknown field {name!r}{nearest(name, (*RANGE_FIELDS, 'choices'))}: use {FORMS}")
    if "choices" in value:
        if len(value) > 1:
            raise ValueError(f"{where}: give either choices or low and high, not both")
        choices = checked_list(value["choices"], f"{where}.choices")
        texts = [json.dumps(one) for one in choices]
        if len(set(texts)) < len(texts):
            raise ValueError(f"{where}.choices={choices!r} names one twice")
        return Choices(tuple(choices))
    return _range(where, value)


def _range(where: str, value: Mapping[str, Any]) -> Range:
    for name in ("low", "high"):
        if name not in value:
            raise ValueError(f"{where}: {name} is missing: use {FORMS}")
    for name in ("low", "high", "step"):
        number = value.get(name, 1)
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"{where}.{name}={number!r} must be a number")
    for name in ("log", "int"):
        if not isinstance(value.get(name, False), bool):
            raise ValueError(f"{where}.{name}={value[name]!r} must be true or false")
    low, high, step, log = value["low"], value["high"], value.get("step"), value.get("log", False)
    whole = all(isinstance(one, int) for one in (low, high, *([] if step is None else [step])))
    is_int = value.get("int", whole and step is not None)
    if is_int and not whole:
        raise ValueError(f"{where}: int is true, but low={low!r}, high={high!r}, step={step!r} are not all whole")
    if not low < high:
        raise ValueError(f"{where}: low={low:g} must be below high={high:g}")
    if log and not low > 0:
        raise ValueError(f"{where}: low={low:g} must be above 0 with log: true")
    if step is not None and log:
        raise ValueError(f"{where}: step and log cannot go together: list choices instead")
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"{where}.step={step:g} must be above 0 and at most high - low = {high - low:g}")
    if step is not None:
        # Optuna would lower `high` to the last step and warn.
        high = low + math.floor((high - low) / step + 1e-9) * step
    return Range(low, high, log, step, is_int) if is_int else Range(float(low), float(high), log, step)
