"""What a load found, in plain values that JSON holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning_gpt.load.answers import Answers
from lightning_gpt.load.recorder import Samples


@dataclass
class LoadResult:
    """Result of a load. Times are milliseconds where a name ends in _ms, else seconds; NaN = there is no such value,
    null in JSON."""

    settings: dict[str, Any]
    """LoadSettings, without keys."""
    model: str
    started: str
    """UTC, RFC 3339."""
    seconds: float
    """Until the last answer."""
    sending_s: float
    """In which requests were sent; rates are over these, less the warm-up."""
    stopped: bool
    """Ended early by a person."""
    totals: dict[str, Any]
    errors: dict[str, int]
    """Requests by what went wrong, most first."""
    series: dict[str, Any]
    """Columns of equal length, a value a second; `errors_by_kind` is a column each."""
    steps: list[dict[str, Any]]
    """Each part of the schedule, where it has several."""
    tenants: list[dict[str, Any]]
    """Each key, where there are several."""
    quantiles: dict[str, list[float]]
    """`shares`, and the latency and time to the first token that those shares do not exceed."""
    watched: list[dict[str, float]]
    hardware: dict[str, Any]
    warnings: list[str]
    wrong_answers: list[dict[str, Any]]
    """The first few, beside what was expected."""
    samples: Samples = field(repr=False)
    answers: Answers | None = field(default=None, repr=False)

    def content(self) -> dict[str, Any]:
        """For results.json: everything but the samples."""
        names = [name for name in self.__dataclass_fields__ if name not in ("samples", "answers")]
        return {name: plain(getattr(self, name)) for name in names}


def plain(value: Any) -> Any:
    """As JSON has it: NaN is None, numbers have six digits."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if value == value and abs(value) != float("inf") else None
    return value
