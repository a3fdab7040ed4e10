"""From jsonargparse's error messages to one line that names the setting, the fault and the nearest right name."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any, get_type_hints

HOMES = ("lightning_gpt.tasks", "lightning_gpt.data", "lightning_gpt.optim")
"""Modules whose classes YAML files choose from."""

_UNION = re.compile(r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: ?")
_KEY = re.compile(r'Parser key "([\w.]+)": ?')
_CLASS = re.compile(r"Problem with given class_path '([\w.]+)': ?")
_NOISE = re.compile(r"(- )?Expected a path but \S+ either not accessible or invalid ?(- )?")
_NULL = re.compile(r" ?- Expected a <class 'NoneType'>")
_GIVEN = re.compile(r" Given value(?: type: <class '[\w.]+'> Given value)?: (.*)$")
_UNKNOWN = re.compile(r"(?:unrecognized arguments: --|does not accept option '|Option '|[Kk]ey ')([\w.]+)")
_NO_CLASS = re.compile(r"has no attribute '|No module named '|dot import path string: ([\w.]+)")


def distill(message: str) -> tuple[str, str | None]:
    """The point of a message, "model.optimizer (AdamW): Option 'x' is not accepted", and the class it is about.

    Of the alternatives that a union of types offers, null is left out; the whole configuration as "given value" too.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("For more details", "usage:"))]
    text = _UNION.sub("", " ".join(" ".join(kept).split()))
    text = _NOISE.sub("", _NULL.sub("", text))
    given = _GIVEN.search(text)
    if given:
        text = text[: given.start()]
        if re.fullmatch(r"[\w.\-]+", given[1]):
            text += f". Got value: {given[1]}"
    keys, classes = _KEY.findall(text), _CLASS.findall(text)
    text = _CLASS.sub("", _KEY.sub("", text)).strip(" -")
    for old, new in ((" - Expected a ", " or "), ("Expected a ", "expected "), ("typing.Literal", "one of ")):
        text = text.replace(old, new)
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    where = ".".join(keys) + (f" ({classes[-1].rpartition('.')[2]})" if classes else "")
    return (f"{where}: {text}" if where else text), (classes[-1] if classes else None)


def argument_names(class_path: str) -> list[str]:
    """What a class can be given: its arguments, and the fields of those that are dataclasses as argument.field."""
    module, _, name = class_path.rpartition(".")
    chosen: Any = getattr(importlib.import_module(module), name)
    hints = get_type_hints(chosen.__init__)
    names = []
    for name in inspect.signature(chosen).parameters:
        names.append(name)
        if is_dataclass(hints.get(name)):
            names += [f"{name}.{field}" for field in inspect.signature(hints[name]).parameters]
    return names


def class_names() -> list[str]:
    """Every class_path of ours that a YAML file can name."""
    found = []
    for home in HOMES:
        module = importlib.import_module(home)
        found += [f"{home}.{name}" for name in module.__all__ if inspect.isclass(getattr(module, name))]
    return found


def hint(text: str, class_path: str | None, keys: Iterable[str]) -> str:
    """ " - did you mean 'x'?" for the unknown name in a distilled message, or nothing.

    Args:
        text: from `distill`.
        class_path: from `distill`.
        keys: what the parser itself knows.
    """
    if no_class := _NO_CLASS.search(text):
        return nearest(no_class[1] or class_path or "", class_names())
    unknown = _UNKNOWN.search(text)
    return nearest(unknown[1], argument_names(class_path) if class_path else keys) if unknown else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """ " - did you mean 'x'?" for the name most like `word`, as a whole or by its last part; or nothing."""
    known = list(known)
    leaves = {key.rpartition(".")[2]: key for key in reversed(known)}
    if word in known or word in leaves:
        return ""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    near = near or [leaves[leaf] for leaf in difflib.get_close_matches(word.rpartition(".")[2], leaves, n=1)]
    return f" - did you mean {near[0]!r}?" if near else ""
