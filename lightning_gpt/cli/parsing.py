"""Errors of the command line and of YAML files in one line, with the nearest name for a typing mistake."""

import difflib
import inspect
import re
import sys
from collections.abc import Callable

from jsonargparse import ArgumentParser

UNKNOWN = re.compile(r"(?:[Kk]ey|[Oo]ption|[Uu]nrecognized arguments:|No action for key)\W+([\w.\-]+)")


def parser_keys(parser: ArgumentParser) -> list[str]:
    """Every dotted key that the parser knows, those of its subcommands included."""
    keys = []
    for action in parser._actions:
        keys.append(action.dest)
        for sub in (getattr(action, "_name_parser_map", None) or {}).values():
            keys += parser_keys(sub)
    return keys


def nested_keys(classes: list[type]) -> list[str]:
    """Names of the fields and arguments of classes that are chosen by class_path."""
    names: list[str] = []
    for one in classes:
        names += [name for name in inspect.signature(one).parameters if name not in ("self", "args", "kwargs")]
    return names


def condense(message: str) -> str:
    """jsonargparse's message without the usage lines and hints that surround its point."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("For more details", "Given value type", "usage:"))]
    return " ".join(" ".join(kept).split())


def nearest(message: str, known: list[str]) -> str:
    """ " - did you mean 'x'?" for the unknown key that the message names, or nothing."""
    for match in UNKNOWN.finditer(message):
        word = match.group(1).strip("-.'\"")
        leaves = {key.rpartition(".")[2]: key for key in known}
        if word in known or word in leaves:
            continue
        near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
        near = near or [leaves[leaf] for leaf in difflib.get_close_matches(word.rpartition(".")[2], leaves, n=1)]
        if near:
            return f" - did you mean {near[0]!r}?"
    return ""


def with_bare_flags(function: Callable, args: list[str]) -> list[str]:
    """Command line in which `--overwrite` alone means `--overwrite true`, for the boolean parameters of a verb."""
    parameters = inspect.signature(function).parameters.values()
    flags = {f"--{one.name}" for one in parameters if one.annotation in (bool, "bool")}
    complete = []
    for argument, following in zip(args, [*args[1:], ""]):
        complete.append(argument)
        if argument in flags and following.lower() not in ("true", "false", "yes", "no"):
            complete.append("true")
    return complete


class ClearErrorParser(ArgumentParser):
    """A parser whose errors are one line."""

    extra_names: tuple[str, ...] = ()

    def __init__(self, *args, **kwargs) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Prints one line and exits with 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        text = condense(str(message))
        if len(text) > 1200:
            text = text[:1200] + " ..."
        hint = nearest(text, parser_keys(self) + list(self.extra_names))
        print(f"lightning-gpt: error: {text}{hint}", file=sys.stderr)
        raise SystemExit(2)
