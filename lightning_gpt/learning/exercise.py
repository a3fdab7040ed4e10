"""What an exercise is."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["component", "config", "measure", "run"]
"""component: a Python file; config: a network's YAML; measure: numbers in a YAML; run: a YAML that names a run."""


class Wrong(Exception):
    """An answer is wrong; the message says how, without the answer."""


@dataclass(frozen=True)
class Exercise:
    """One exercise of a chapter."""

    stars: int
    """1: change a knob; 2: measure or compare; 3: write a component."""
    title: str
    kind: Kind
    text: str
    """What to do, as `learn start` prints it above the file."""
    stub: str
    """Content of the file that the learner completes: below the text; THIS stands for the id."""
    check: Callable[[Any], str | None]
    """Judges a component's module, or the values of a YAML; raises Wrong; may return what is worth saying."""
    hints: tuple[str, ...]
    """From a nudge to nearly the answer."""
    name: str = "answer"
    """Of the file, without its ending."""
    solution: Callable[[], Any] | None = None
    """What passes: {name: function} of this package, or the text of a YAML. None: only a real run passes."""
    files: Callable[[], Mapping[str, str]] | None = None
    """More files that the exercise needs, by their names."""
    seconds: float = 60.0
    """After which an answer that still computes is stopped."""
    id: str = ""
    """Chapter and place in it, which is the number on its page: 05.3. The chapter sets it."""

    @property
    def chapter(self) -> str:
        """05 of 05.3."""
        return self.id.partition(".")[0]

    @property
    def file_name(self) -> str:
        """Of the learner's file: its number is that of the exercise."""
        ending = "py" if self.kind == "component" else "yaml"
        return f"{self.id.partition('.')[2]}_{self.name}.{ending}"

    @property
    def content(self) -> str:
        """What `learn start` writes."""
        ready = f"When it is ready: lightning-gpt learn check {self.id}"
        paragraphs = (f"{self.id} {self.title}", *self.text.split("\n\n"), ready)
        text = "\n\n".join(textwrap.fill(paragraph, 98) for paragraph in paragraphs)
        stub = self.stub.strip().replace("THIS", self.id)
        if self.kind == "component":
            gap = "\n\n" if stub.startswith(("def ", "class ")) else "\n"
            return f'"""{text}\n"""\n{gap}{stub}\n'
        comment = "\n".join(f"# {line}".rstrip() for line in text.splitlines())
        return f"{comment}\n{stub}\n"


@dataclass(frozen=True)
class Chapter:
    """A step of the path."""

    number: str
    folder: str
    """Below experiments/."""
    title: str
    chinese: str
    exercises: tuple[Exercise, ...] = field(default=())
