"""The reference: a page for each folder of the package, whose contents mkdocstrings takes from the docstrings."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from docstrings import as_markdown
from repository import ROOT, Site, cited_modules, dotted, is_chinese, title

PACKAGE = ROOT / "lightning_gpt"
CHAPTER = re.compile(r"experiments/\d\d_\w+/README\.md")


def folders() -> list[Path]:
    """Folders of the package that hold modules, the package itself first."""
    return sorted({path.parent for path in PACKAGE.rglob("*.py")})


def page_of(folder: Path) -> str:
    """Where a folder's page is on the site."""
    inside = folder.relative_to(PACKAGE).as_posix()
    return "reference/index.md" if inside == "." else f"reference/{inside.replace('/', '.')}.md"


def module_of(path: Path) -> str:
    """Dotted name of a file or folder."""
    return dotted(path.relative_to(ROOT).as_posix())


def reference_pages(site: Site) -> dict[str, str]:
    """Markdown of every folder's page, by its place on the site."""
    guide = chapters_by_module(site)
    pages = {}
    for folder in folders():
        page = index(guide) if folder == PACKAGE else folder_page(folder, guide)
        pages[page_of(folder)] = page
    return pages


def chapters_by_module(site: Site) -> dict[str, list[str]]:
    """Which chapters name a module, as links: the chapters are the guide to the reference."""
    found = defaultdict(list)
    for page, text in sorted(site.pages.items()):
        if CHAPTER.fullmatch(page) and not is_chinese(page):
            for module in cited_modules(text):
                found[module].append(f"[{title(text)}](../{page})")
    return found


def first_line(path: Path) -> str:
    """The first sentence or line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return as_markdown(" ".join(text.partition("\n\n")[0].split())).replace("|", "\\|")


def index(guide: dict[str, list[str]]) -> str:
    """The first page: every folder, and the chapters that lead to it."""
    lines = [
        "# Reference",
        "",
        "Made from the docstrings of the package, folder by folder: what each class and function takes, gives and",
        "refuses. What they are for, and why they are as they are, the chapters tell; the table says which.",
        "",
        "| folder | what | chapters |",
        "| --- | --- | --- |",
    ]
    for folder in folders()[1:]:
        module = module_of(folder)
        links = sorted({link for name, links in guide.items() if within(name, folder) for link in links})
        numbers = ", ".join(re.sub(r"\[(\d\d)[^]]*\]", r"[\1]", link) for link in links)
        lines.append(
            f"| [`{module}`]({Path(page_of(folder)).name}) | {first_line(folder / '__init__.py')} | {numbers} |"
        )
    return "\n".join([*lines, ""])


def within(module: str, folder: Path) -> bool:
    """Whether a name is that of a folder or of a file directly in it."""
    return module == module_of(folder) or module.rpartition(".")[0] == module_of(folder)


def folder_page(folder: Path, guide: dict[str, list[str]]) -> str:
    """A folder: its modules with the chapters that name them, then each module."""
    name = module_of(folder)
    lines = [f"::: {name}", "    options: {members: false, heading_level: 1}", ""]
    if guide.get(name):
        lines += [f"Chapters: {', '.join(guide[name])}.", ""]
    modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    lines += ["| module | what | chapters |", "| --- | --- | --- |"]
    for path in modules:
        links = ", ".join(guide.get(module_of(path), []))
        lines.append(f"| [`{path.stem}`][{module_of(path)}] | {first_line(path)} | {links} |")
    lines.append("")
    for path in modules:
        lines += [f"::: {module_of(path)}", ""]
    return "\n".join(lines)


def known_names() -> set[str]:
    """Every name that the reference explains: modules, and public classes, functions, methods and values in them."""
    names = {module_of(folder) for folder in folders()} - {PACKAGE.name}
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            module = module_of(path)
            names |= {module, *public_names(ast.parse(path.read_text(encoding="utf-8")), module)}
    return names


def public_names(node: ast.Module | ast.ClassDef, prefix: str) -> set[str]:
    """Public names of a module's or class's body."""
    found = set()
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            own = [child.name]
        elif isinstance(child, ast.Assign | ast.AnnAssign):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            own = [target.id for target in targets if isinstance(target, ast.Name)]
        else:
            continue
        found |= {f"{prefix}.{name}" for name in own if not name.startswith("_")}
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            found |= public_names(child, f"{prefix}.{child.name}")
    return found
