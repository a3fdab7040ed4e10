"""Rewards that are known beforehand: a number for each text, from a file."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any


class TableReward:
    """Looks every answer up.

    Args:
        path: JSON object {text: number}.
        default: of answers that are not in it; null = they are refused.
    """

    def __init__(self, path: str, default: float | None = None) -> None:
        self.path, self.default = path, default

    @cached_property
    def _table(self) -> dict[str, float]:
        try:
            table = json.loads(Path(self.path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"reward.path={self.path} cannot be read: {error}") from None
        if not isinstance(table, dict):
            raise ValueError(f"reward.path={self.path} must hold an object {{text: number}}")
        return table

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """Numbers of the table.

        Raises:
            ValueError: an answer is not in it and there is no default.
        """
        found = [self._table.get(text, self.default) for text in completions]
        if None in found:
            missing = completions[found.index(None)]
            raise ValueError(f"{missing[:60]!r} is not in reward.path={self.path}: set reward.default")
        return found
