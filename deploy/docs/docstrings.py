"""Our docstrings are plain text with names in backticks; this makes Markdown of them that looks the same."""

import re

import griffe

SPAN = re.compile(r"(``[^`]+``|`[^`\n]*(?:\n[^`\n]*)?`)")
ARGUMENTS = re.compile(r"^Args:\n(?: .*\n?)+", re.MULTILINE)
TOGETHER = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*\n(?:     .*\n)*)", re.MULTILINE)
"""Arguments that are explained together: their names, and the explanation with its further lines."""


def as_markdown(text: str) -> str:
    """Stars, underscores, dollars and angle brackets stay what they are; blocks set off by four spaces stay code."""
    lines: list[str] = []
    plain: list[str] = []
    code = after_empty = False

    def flush() -> None:
        if plain:
            lines.extend(escaped("\n".join(plain)).split("\n"))
            plain.clear()

    for line in text.split("\n"):
        indented = line.startswith("    ")
        code = indented and (code or after_empty) if line.strip() else code
        after_empty = not line.strip()
        if code:
            flush()
            lines.append(line)
        else:
            plain.append(line)
    flush()
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Outside of backticks nothing is a mark-up, except stars that open a line: names of arguments, items."""
    parts = SPAN.split(text)
    for index in range(0, len(parts), 2):
        part = parts[index].replace("<", "&lt;").replace("$", "\\$")
        part = re.sub(r"(?<!^)(?<!\n)(?<!\n    )(?<!\*)\*", r"\\*", part)
        parts[index] = re.sub(r"(?<!\w)_+(?=\w)|(?<=[^\W_])_+(?!\w)", lambda found: len(found[0]) * r"\_", part)
    return "".join(parts)


def one_argument_each(text: str) -> str:
    """`a, b: what` below Args: as an entry for each, so that the reference knows both names."""

    def split(match: re.Match[str]) -> str:
        return "".join(f"    {name}: {match[2]}" for name in match[1].split(", "))

    return ARGUMENTS.sub(lambda section: TOGETHER.sub(split, f"{section[0]}\n").removesuffix("\n"), text)


class PlainDocstrings(griffe.Extension):
    """Rewrites every docstring before its sections are read."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(one_argument_each(obj.docstring.value))
