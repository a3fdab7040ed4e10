"""What a diagnosis says: findings, and which rules could judge."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from lightning_gpt.callbacks.diagnosis_signals import Signals

SEVERITIES = ("critical", "warning")
"""critical: the run is lost; warning: it is worse than it could be."""


class CannotJudge(Exception):
    """Too little is known yet; the message says what of."""


@dataclass
class Finding:
    """A sickness, with what speaks for it and what to do."""

    rule: str
    severity: str
    """One of SEVERITIES."""
    step: int
    """At which it was seen."""
    message: str
    advice: str
    evidence: dict[str, float] = field(default_factory=dict)
    signal: str = "loss"
    """Where it is seen in a picture."""
    since: int = 0
    """Step at which it began, where that can be told."""

    @property
    def line(self) -> str:
        """Everything in one line."""
        return f"{self.rule}: {self.message}. {self.advice}"


class Rule(NamedTuple):
    """A rule under its name."""

    judge: Callable[[Signals], Finding | None]
    needs: tuple[str, ...]
    """Signals without which it cannot judge."""


RULES: dict[str, Rule] = {}


def rule(*needs: str) -> Callable:
    """Registers a function under its name."""

    def register(judge: Callable[[Signals], Finding | None]) -> Callable:
        RULES[judge.__name__] = Rule(judge, needs)
        return judge

    return register


@dataclass
class Report:
    """What `diagnose` has to say."""

    findings: list[Finding]
    """The gravest first."""
    checked: list[str]
    """Rules that could judge."""
    unchecked: dict[str, str]
    """Rule -> why it could not."""
