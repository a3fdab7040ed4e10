"""The files that a load leaves: results.json, report.html, report.png and, where answers were checked, the answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lightning_gpt.load.answers import ANSWERS_FILE
from lightning_gpt.load.figure import draw
from lightning_gpt.load.page import page
from lightning_gpt.load.result import LoadResult

RESULTS_FILE, PAGE_FILE, PICTURE_FILE = "results.json", "report.html", "report.png"


def write_report(result: LoadResult, directory: Path, command: str = "", missed: list[str] | None = None) -> list[Path]:
    """Writes each file whole or not at all; names them.

    Args:
        result: of a load.
        directory: is made if it is not there.
        command: that makes it again.
        missed: aims that do not hold; None = there were no aims.

    Raises:
        OSError: it cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    content = {"command": command} | result.content() | {"missed_aims": missed}
    figure = draw(result)
    written = [directory / RESULTS_FILE, directory / PAGE_FILE, directory / PICTURE_FILE]
    _replace(written[0], (json.dumps(content, indent=1) + "\n").encode())
    _replace(written[1], page(result, figure, command, missed).encode())
    temporary = written[2].with_name(f".{PICTURE_FILE}")
    figure.savefig(temporary, dpi=110, format="png")
    os.replace(temporary, written[2])
    if result.answers is not None:
        written.append(directory / ANSWERS_FILE)
        result.answers.write(written[-1])
    return written


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
