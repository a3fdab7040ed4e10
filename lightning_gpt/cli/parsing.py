"""Errors of the command line and of YAML files in one line, with the nearest name for a typing mistake."""

import inspect
import json
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


def with_bare_flags(command: Callable | dict, args: list[str]) -> list[str]:
    """Command line in which `--overwrite` alone means `--overwrite true`, for the boolean parameters of a verb.

    Args:
        command: the verb's function, or its subcommands' by name.
        args: what follows the verb.
    """
    functions = [one for one in command.values() if callable(one)] if isinstance(command, dict) else [command]
    parameters = [one for function in functions for one in inspect.signature(function).parameters.values()]
    flags = {f"--{one.name}" for one in parameters if one.annotation in (bool, "bool")}
    complete = []
    for argument, following in zip(args, [*args[1:], ""]):
        complete.append(argument)
        if argument in flags and following.lower() not in ("true", "false", "yes", "no"):
            complete.append("true")
    return complete


def with_named_positionals(command: Callable | dict, args: list[str]) -> list[str]:
    """Command line in which `--out DIR` may be said for the positional DIR of a parameter `out` without default.

    Args:
        command: the verb's function; subcommands are left alone.
        args: what follows the verb.
    """
    if isinstance(command, dict):
        return args
    parameters = inspect.signature(command).parameters.values()
    required = [one.name for one in parameters if one.default is inspect.Parameter.empty and one.annotation is str]
    rest, named, waiting = [], {}, iter(args)
    for argument in waiting:
        option, equals, value = argument.partition("=")
        if option.removeprefix("--") in required and option.startswith("--"):
            value = value if equals else next(waiting, None)
            if value is None:
                return args  # the parser says what is missing
            named[option.removeprefix("--")] = value
        else:
            rest.append(argument)
    return rest + [named[name] for name in required if name in named]


def with_lists(command: Callable | dict, args: list[str]) -> list[str]:
    """Command line in which lists are JSON, as jsonargparse wants them, made from words.

    The words of a parameter list[str] without default are positional, those of one with a default follow its option,
    which may be repeated: `compare a b --filter x=1 --filter y=2`.

    Args:
        command: the verb's function, or its subcommands' by name.
        args: what follows the verb.
    """
    if isinstance(command, dict):
        known = bool(args) and args[0] in command
        return [args[0], *with_lists(command[args[0]], args[1:])] if known else args
    if any(word in ("-h", "--help") or word.startswith("[") or "=[" in word for word in args):
        return args  # nothing to read, or lists as jsonargparse wants them already
    parameters = list(inspect.signature(command).parameters.values())
    lists = {one.name for one in parameters if one.annotation in (list[str], list[str] | None)}
    positional = next((one.name for one in parameters if one.name in lists and one.default is one.empty), None)
    words: dict[str, list[str]] = {name: [] for name in lists}
    rest, current, waiting = [], positional, list(args)
    while waiting:
        argument = waiting.pop(0)
        option, equals, value = argument.partition("=")
        if not argument.startswith("--"):
            (words[current] if current else rest).append(argument)
            continue
        name = option.removeprefix("--")
        if name not in lists:
            rest.append(argument)
            rest += waiting[:1] if not equals else []
            waiting = waiting[0 if equals else 1 :]
            current = positional
        else:
            current = name
            words[name] += [value] if equals else []
    for name, found in words.items():
        if name != positional and found:
            rest += [f"--{name}", json.dumps(found)]
    return [json.dumps(words[positional]), *rest] if positional and words[positional] else rest


def with_fit_arguments(command: Callable | dict, args: list[str]) -> list[str]:
    """Command line in which a verb with a parameter `fit` takes -c files and dotted settings as `fit` itself does.

    Args:
        command: the verb's function, or its subcommands' by name.
        args: what follows the verb.
    """
    chosen = command.get(args[0] if args else "") if isinstance(command, dict) else command
    if not callable(chosen) or "fit" not in inspect.signature(chosen).parameters:
        return args
    rest, fit, waiting = [], [], list(args)
    while waiting:
        argument = waiting.pop(0)
        option, equals, _ = argument.partition("=")
        if option in ("-c", "--config") or (option.startswith("--") and "." in option and not option.endswith(".help")):
            fit.append(argument)
            if not equals and waiting:
                fit.append(waiting.pop(0))
        else:
            rest.append(argument)
    return [*rest, f"--fit={json.dumps(fit)}"] if fit else rest


def with_files(fit: list[str] | None) -> list[str]:
    """Arguments of `fit`, as with_fit_arguments collects them.

    Raises:
        ValueError: there are no configuration files among them.
    """
    if not fit or not any(one.startswith(("-c", "--config")) for one in fit):
        raise ValueError("no configuration: give -c configs/<topic>.yaml -c configs/trainer/<machine>.yaml")
    return fit


def completed(command: Callable | dict, args: list[str]) -> list[str]:
    """Command line with everything that the parser itself would not understand spelled out.

    Args:
        command: the verb's function, or its subcommands' by name.
        args: what follows the verb.
    """
    if isinstance(command, dict) and not args and "status" in command:
        args = ["status"]
    args = with_bare_flags(command, with_fit_arguments(command, args))
    return with_lists(command, with_named_positionals(command, args))


def with_nulls_as_config(args: list[str]) -> list[str]:
    """Command line in which `--model.config.moe null` is a `-c` with that one setting.

    jsonargparse hands a null for a part of a chosen class on as the text "None"; in a configuration it stays null.

    Args:
        args: what follows fit, validate, test or predict.
    """
    rest, waiting = [], list(args)
    while waiting:
        argument = waiting.pop(0)
        option, equals, value = argument.partition("=")
        group, _, path = option.removeprefix("--").partition(".")
        value = value if equals else waiting[0] if waiting else ""
        if not option.startswith(("--model.", "--data.")) or value not in ("null", "~"):
            rest.append(argument)
            continue
        waiting = waiting[0 if equals else 1 :]
        keys = [group, "init_args", *path.removeprefix("init_args.").split(".")]
        rest += ["-c", "".join(f"{{{key}: " for key in keys) + "null" + "}" * len(keys)]
    return rest


class ClearErrorParser(ArgumentParser):
    """A parser whose errors are one line."""

    def __init__(self, *args, **kwargs) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Prints one line and exits with 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        print(f"lightning-gpt: error: {self.in_one_line(message)}", file=sys.stderr)
        raise SystemExit(2)

    def in_one_line(self, message: str) -> str:
        """What is wrong, with the nearest name."""
        text, class_path = distill(str(message))
        if len(text) > 1200:
            text = text[:1200] + " ..."
        return text + hint(text, class_path, parser_keys(self))
