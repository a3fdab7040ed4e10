"""The command that calls a verb's function with some values: what reports show to be run again."""

import inspect
import shlex
from collections.abc import Callable, Mapping
from typing import Any


def command_line(verb: str, function: Callable, values: Mapping[str, Any]) -> str:
    """`lightning-gpt VERB POSITIONALS --option value`, without what has its default.

    Args:
        verb: such as "plan fit".
        function: its function.
        values: name -> value of its parameters; others are left out.
    """
    words = ["lightning-gpt", *verb.split()]
    for name, parameter in inspect.signature(function).parameters.items():
        value = values[name]
        if parameter.default is inspect.Parameter.empty:
            words += map(str, value) if isinstance(value, list) else [str(value)]
        elif value != parameter.default and isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif value != parameter.default:
            words += (
                [f"--{name}"] if value is True else [f"--{name}", f"{value:g}" if type(value) is float else str(value)]
            )
    return shlex.join(words)
