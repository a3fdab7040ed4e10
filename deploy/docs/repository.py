"""Which files of the repository are on the site: pages by their place, and all that they link to.

Every file keeps its path, so that links between Markdown files work here as they do on a code host.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README*.md",
    "CONTRIBUTING*.md",
    "CHANGELOG.md",
    "experiments/README*.md",
    "experiments/*/README*.md",
    "deploy/*/README.md",
    "benchmarks/README.md",
)
CHINESE = ".zh-CN.md"
FENCE = re.compile(r"^(```+|~~~+)[^\n]*\n.*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?<!`)`[^`\n]+`(?!`)")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
"""Is it a picture, its text, its target."""
MODULE = re.compile(r"`(lightning_gpt(?:/\w+)*(?:\.py)?/?)(?:::([\w.]+))?`")
"""A file or folder of the package in backticks, and a name in it."""
REPORT = re.compile(r"`((?:experiments|benchmarks|deploy)/[\w/.-]+\.md)`")


@dataclass
class Site:
    """Pages in Markdown, and files that are only copied, by path in the repository."""

    pages: dict[str, str] = field(default_factory=dict)
    copied: set[str] = field(default_factory=set)


def prose(text: str) -> str:
    """Text without code, in which links are looked for."""
    return CODE.sub("", FENCE.sub("", text))


def resolved(page: str, target: str) -> str | None:
    """Path in the repository of a relative link; None: it leads elsewhere, or to a part of the same page."""
    target = target.partition("#")[0]
    if not target or re.match(r"[a-z]+:", target):
        return None
    path = (ROOT / PurePosixPath(page).parent / target).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else None


def collect() -> Site:
    """The pages of PAGES, and what can be reached from them."""
    site = Site()
    found = sorted(path.relative_to(ROOT).as_posix() for pattern in PAGES for path in ROOT.glob(pattern))
    while found:
        page = found.pop()
        if page in site.pages:
            continue
        text = site.pages[page] = (ROOT / page).read_text(encoding="utf-8")
        targets = {resolved(page, target) for _, _, target in LINK.findall(prose(text))} | set(REPORT.findall(text))
        for target in sorted(targets - {None}):
            if target.endswith(".md"):
                found += [target] if (ROOT / target).is_file() else []
            elif (ROOT / target).is_dir():
                found += [f"{target}/README.md"] if (ROOT / target / "README.md").is_file() else []
            elif (ROOT / target).is_file() and not target.startswith("lightning_gpt/"):
                site.copied.add(target)
    return site


def cited_modules(text: str) -> set[str]:
    """Dotted names of the package's modules and folders that a page names."""
    return {dotted(path) for path, _ in MODULE.findall(text)}


def dotted(path: str) -> str:
    """lightning_gpt/nn/gpt.py -> lightning_gpt.nn.gpt."""
    return path.rstrip("/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def is_chinese(page: str) -> bool:
    """Whether a page is written in Chinese."""
    return page.endswith(CHINESE)


def translation(page: str) -> str:
    """The same page in the other language; it need not exist."""
    return page.replace(CHINESE, ".md") if is_chinese(page) else f"{page.removesuffix('.md')}{CHINESE}"


def title(text: str) -> str:
    """The first heading."""
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""
