"""From Markdown as code hosts read it to Markdown as Python-Markdown reads it, with links into the reference."""

import html
import os
import re
from collections.abc import Callable
from pathlib import PurePosixPath

from graphs import drawn
from latex2mathml.converter import convert
from repository import CODE, FENCE, LINK, MODULE, REPORT, ROOT, Site, dotted, resolved

ITEM = re.compile(r"([-*+]|\d+\.) ")
ARITHMATEX = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def page_for_mkdocs(page: str, text: str, site: Site, known: set[str]) -> str:
    """A page of the repository, ready for MkDocs.

    Args:
        page: its path.
        text: its Markdown.
        site: what else is on the site.
        known: names that the reference explains.
    """
    text = FENCE.sub(lambda match: drawn(match[0]) if match[0].startswith("```mermaid") else match[0], text)
    text = outside(FENCE, text, lambda part: loose_lists(linked(page, part, site, known)))
    return text


def outside(pattern: re.Pattern[str], text: str, change: Callable[[str], str]) -> str:
    """Changes what lies between the matches of a pattern."""
    parts, end = [], 0
    for match in pattern.finditer(text):
        parts += [change(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, change(text[end:])])


def linked(page: str, text: str, site: Site, known: set[str]) -> str:
    """Links to code lead into the reference, and names of code and reports in backticks become links."""

    def link(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        path = resolved(page, target)
        if path is None or path in site.pages or path in site.copied:
            return match[0]
        if path.startswith("lightning_gpt"):
            name = nearest(dotted(path), known)
            return words if name == "lightning_gpt" else f"[{words}][{name}]"
        if f"{path}/README.md" in site.pages:
            return f"{picture}[{words}]({target.rstrip('/')}/README.md)"
        return words if (ROOT / path).is_dir() else match[0]

    def code(match: re.Match[str]) -> str:
        name = nearest(f"{dotted(match[1])}.{match[2]}" if match[2] else dotted(match[1]), known)
        return match[0] if name == "lightning_gpt" else f"[{match[0]}][{name}]"

    def report(match: re.Match[str]) -> str:
        here = PurePosixPath(page).parent
        return f"[{match[0]}]({os.path.relpath(match[1], here)})" if match[1] in site.pages else match[0]

    links: list[str] = []

    def set_aside(match: re.Match[str]) -> str:
        links.append(link(match))
        return f"\0{len(links) - 1}\0"

    text = LINK.sub(set_aside, text)  # a name inside of a link stays what it is
    text = REPORT.sub(report, MODULE.sub(code, text))
    return re.sub(r"\0(\d+)\0", lambda match: links[int(match[1])], text)


def nearest(name: str, known: set[str]) -> str:
    """The name, or for private ones, which the reference does not show, what holds them."""
    while name not in known and name.rpartition(".")[2].startswith("_"):
        name = name.rpartition(".")[0]
    return name


def loose_lists(text: str) -> str:
    """An empty line before each list, which code hosts do without."""
    lines: list[str] = []
    in_list = False
    for line in text.split("\n"):
        if ITEM.match(line):
            if not in_list and lines and lines[-1].strip():
                lines.append("")
            in_list = True
        elif not line.strip():
            in_list = False
        lines.append(line)
    return "\n".join(lines)


def with_formulas(content: str) -> str:
    """TeX to MathML, which browsers draw without a script.

    Raises:
        ValueError: a formula that cannot be read.
    """

    def formula(match: re.Match[str]) -> str:
        tex, block = html.unescape(match[2]).strip(), match[1] == "div"
        tex = tex[2:-2].strip()  # \( \) or \[ \]
        try:
            drawing = convert(tex, display="block" if block else "inline")
        except Exception as error:
            raise ValueError(f"cannot draw {tex!r}: {type(error).__name__} {error}") from error
        return f'<span class="formula">{drawing}</span>' if block else drawing

    return ARITHMATEX.sub(formula, content)


__all__ = ["CODE", "page_for_mkdocs", "with_formulas"]
