"""Errors of the command line and of YAML files in one line, with the nearest name for a typing mistake."""

import inspect
import sys
from collections.abc import Callable

from jsonargparse import ArgumentParser

from lightning_gpt.cli.messages import distill, hint


def parser_keys(parser: ArgumentParser) -> list[str]:
    """Every dotted key that the parser knows, those of its subcommands included."""
    keys = []
    for action in parser._actions:
        keys.append(action.dest)
        for sub in (getattr(action, "_name_parser_map", None) or {}).values():
            keys += parser_keys(sub)
    return keys


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

    def __init__(self, *args, **kwargs) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Prints one line and exits with 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        text, class_path = distill(str(message))
        if len(text) > 1200:
            text = text[:1200] + " ..."
        text += hint(text, class_path, parser_keys(self))
        print(f"lightning-gpt: error: {text}", file=sys.stderr)
        raise SystemExit(2)
