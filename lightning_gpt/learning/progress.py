"""What a learner has done: one small JSON file."""

from __future__ import annotations

import datetime
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lightning_gpt.serving.atomic_file import write_atomically

VARIABLE = "LIGHTNING_GPT_LEARN"


def progress_file() -> Path:
    """$LIGHTNING_GPT_LEARN, or learn.json in the user's data folder."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(data) / "lightning_gpt" / "learn.json"


@dataclass
class Progress:
    """By exercise."""

    passed: dict[str, str] = field(default_factory=dict)
    """The day on which it was first solved."""
    tries: dict[str, int] = field(default_factory=dict)
    """Checks, up to the first that passed."""
    hints: dict[str, int] = field(default_factory=dict)
    """How many hints were shown."""
    work: dict[str, str] = field(default_factory=dict)
    """Chapter -> folder in which it was started."""

    def graded(self, exercise: str, right: bool) -> None:
        """Counts a check; what was solved once stays solved."""
        if exercise in self.passed:
            return
        self.tries[exercise] = self.tries.get(exercise, 0) + 1
        if right:
            self.passed[exercise] = datetime.date.today().isoformat()

    def save(self) -> None:
        """Replaces the file in one step."""
        path = progress_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"format": 1, **asdict(self)}, indent=1).encode() + b"\n")


def load_progress() -> Progress:
    """What is kept; a damaged file is set aside as <name>.damaged, which is said."""
    path = progress_file()
    if not path.exists():
        return Progress()
    try:
        return _of(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        aside = path.with_name(f"{path.name}.damaged")
        os.replace(path, aside)
        print(f"{path} is damaged ({error}); it is now {aside}, and progress starts anew", file=sys.stderr)
        return Progress()


def _of(content: object) -> Progress:
    kinds = {"passed": str, "tries": int, "hints": int, "work": str}
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    parts = {}
    for name, kind in kinds.items():
        part = content.get(name, {})
        if not isinstance(part, dict) or not all(isinstance(value, kind) for value in part.values()):
            raise ValueError(f"{name} is not what it should be")
        parts[name] = part
    return Progress(**parts)
