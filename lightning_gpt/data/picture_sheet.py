"""Sheets of pictures with words below them: what a batch holds, what a search found."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDE, GAP, LINE = 96, 8, 13
"""Pixels of a cell's picture, between cells, of a line of text."""
GREEN, GREY, BLACK = (30, 150, 60), (120, 120, 120), (20, 20, 20)


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet."""

    picture: Any
    """RGB (PIL)."""
    text: str = ""
    """Below it."""
    marked: bool = False
    """Has a green frame: the right answer."""


def draw_sheet(rows: Sequence[tuple[str, Sequence[Cell]]], lines: int = 2, side: int = SIDE) -> Any:
    """One picture (PIL) of all rows, each with a title above its cells.

    Args:
        rows: title ("" for none) and cells.
        lines: of text below each cell; longer text is cut.
        side: pixels of a cell's picture.
    """
    from PIL import Image, ImageDraw, ImageFont

    font, bold = ImageFont.load_default(11), ImageFont.load_default(13)
    width = max((len(cells) for _, cells in rows), default=1) * (side + GAP) + GAP
    heights = [(LINE + 8 if title else 0) + side + lines * LINE + GAP for title, _ in rows]
    sheet = Image.new("RGB", (width, sum(heights) + GAP), "white")
    pen, top = ImageDraw.Draw(sheet), GAP
    for (title, cells), height in zip(rows, heights):
        below = top
        if title:
            pen.text((GAP, top), _cut(title, width // 7), BLACK, bold)
            below += LINE + 8
        for column, cell in enumerate(cells):
            left = GAP + column * (side + GAP)
            picture = cell.picture.copy()
            picture.thumbnail((side, side))
            if max(picture.size) < side:
                scale = side / max(picture.size)
                picture = picture.resize([max(1, round(scale * one)) for one in picture.size])
            sheet.paste(picture, (left + (side - picture.width) // 2, below + (side - picture.height) // 2))
            frame = (left - 3, below - 3, left + side + 2, below + side + 2)
            if cell.marked:
                pen.rectangle(frame, outline=GREEN, width=3)
            for number, line in enumerate(textwrap.wrap(cell.text, side // 6)[:lines]):
                pen.text((left, below + side + 2 + number * LINE), line, GREEN if cell.marked else GREY, font)
        top += height
    return sheet


def save_sheet(sheet: Any, path: str | Path) -> Path:
    """Writes a sheet as PNG, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    sheet.save(temporary, "PNG")
    temporary.replace(path)
    return path


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
