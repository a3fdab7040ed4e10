"""Whether `lightning-gpt fit` would take settings, without running it."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from lightning_gpt.cli.parsing import with_files, with_nulls_as_config
from lightning_gpt.cli.training import CLI_SETTINGS, TrainingCLI, TrainingParser


class CheckingParser(TrainingParser):
    """Raises its errors."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        """One line.

        Raises:
            ValueError: always.
        """
        raise ValueError(self.in_one_line(message))


class _Built(Exception):
    """The parser is there."""


class _ParserOnly(TrainingCLI):
    """Stops before it parses anything."""

    def parse_arguments(self, parser: TrainingParser, args: Any) -> None:
        raise _Built(parser)


@cache
def fit_parser() -> CheckingParser:
    """The parser of `lightning-gpt fit`; takes about two seconds to build."""
    TrainingCLI.verb = "fit"
    try:
        _ParserOnly(**{**CLI_SETTINGS, "parser_class": CheckingParser}, args=["fit"])
    except _Built as built:
        return built.args[0]
    raise AssertionError("LightningCLI did not parse")


def parsed_settings(configs: Iterable[str | Path], settings: str | Path | None = None) -> Any:
    """What fit would make of configuration files: jsonargparse's namespace of all settings, defaults included.

    Args:
        configs: as -c.
        settings: a last one.

    Raises:
        ValueError: one line that names the setting that fit does not have, or its value that cannot be.
    """
    files = [*configs, *([settings] if settings else [])]
    return parsed_arguments([part for one in files for part in ("-c", str(one))])


def parsed_arguments(fit: list[str] | None) -> Any:
    """What fit would make of its arguments: jsonargparse's namespace of all settings, defaults included.

    Args:
        fit: -c files and dotted settings.

    Raises:
        ValueError: as parsed_settings; no -c file among them.
    """
    try:
        return fit_parser().parse_args(["fit", *with_nulls_as_config(with_files(fit))])["fit"]
    except ValueError as error:
        if "required: fit." not in str(error):
            raise
        missing = str(error).rpartition("required: ")[2].replace("fit.", "").replace(", ", " and no ")
        raise ValueError(
            f"the configurations hold no {missing}: stack a topic, such as configs/pretrain/*.yaml"
        ) from None
