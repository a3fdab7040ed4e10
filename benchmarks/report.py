"""Results as files: JSON for programs, Markdown for people."""

import json
import os
from pathlib import Path


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    """A GitHub table; the first column is text, the others are numbers."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_text(path: Path, text: str) -> None:
    """The file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, content: dict) -> None:
    """`content`, indented."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_report(path: Path, content: dict, markdown: str) -> None:
    """`path` (.json) and beside it the same name with .md; prints the Markdown and where it went."""
    write_json(path, content)
    write_text(path.with_suffix(".md"), markdown + "\n")
    print(f"\n{markdown}\n\nwritten: {path} and {path.with_suffix('.md')}")
