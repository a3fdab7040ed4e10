"""The map, the chapters' pages and others below experiments/: what they name exists, both languages say the same."""

import ast
import os
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from test_house import check_command

from lightning_gpt.cli import main
from lightning_gpt.learning.chapters import CHAPTERS, chapter, chosen

ROOT = Path(os.environ.get("LIGHTNING_GPT_PAGES", Path(__file__).parents[2]))
"""Where experiments/ is; the variable serves who writes pages."""
ENGLISH = ("The idea", "In the code", "The experiment", "What goes wrong", "Exercises", "Papers")
CHINESE = ("思想", "在代码里", "实验", "会出什么问题", "练习", "论文")
FOLDERS = {one.folder: one.number for one in CHAPTERS}
PAGES = sorted([*(ROOT / "experiments").glob("README*.md"), *(ROOT / "experiments").glob("*/README*.md")])
CHAPTER_PAGES = [page for page in PAGES if page.parent.name in FOLDERS]
PAIRS = sorted({page.parent for page in PAGES})


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "experiments"))


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    """Shell blocks."""
    return re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def without_code(text: str) -> str:
    """The text without blocks, formulas and inline code, in which brackets mean something else."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$|`[^`\n]*`", "", text, flags=re.DOTALL)
    return re.sub(r"\$[^$\n]*\$", "", text)


def split(block: str) -> list[str]:
    """Commands of a block: continuations joined, comments and redirections left out, cut at | && ; &."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        waiting = iter([*lexer, ";"])
        for word in waiting:
            if set(word) <= set("<>&") and set(word) & set("<>"):
                next(waiting, None)
            elif set(word) <= set("();|&"):
                found += [shlex.join(command)] if command else []
                command = []
            else:
                command.append(word)
    return found


def inline_commands(text: str) -> list[str]:
    """`lightning-gpt ...` in running text, line breaks joined; those with capitals or dots for a place are patterns."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = (" ".join(code.split()) for code in re.findall(r"`(lightning-gpt [^`]+)`", prose))
    return [code for code in found if code.startswith("lightning-gpt learn ") and "NN" not in code]


def commands() -> list[tuple[Path, str]]:
    """Each once, with the page that has it first."""
    found: dict[str, Path] = {}
    for page in PAGES:
        text = text_of(page)
        for command in [one for block in blocks(text) for one in split(block)] + inline_commands(text):
            found.setdefault(command, page)
    return [(page, command) for command, page in found.items()]


def names(path: Path) -> set[str]:
    """Classes, functions, methods, constants and fields that a file defines, dotted."""

    def within(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + node.name
                if isinstance(node, ast.ClassDef):
                    yield from within(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.If | ast.Try):
                yield from within(node.body, prefix)

    return set(within(ast.parse(path.read_text(encoding="utf-8")).body, ""))


def code_cells(text: str) -> list[str]:
    """`path::name` in their order."""
    return re.findall(r"`([\w./-]+::[\w.]+)`", text)


@pytest.mark.parametrize("page, command", commands(), ids=lambda one: one if isinstance(one, str) else name(one))
def test_a_command_is_understood(page, command, clean_process, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    if words[0] == "lightning-gpt" and any(word == "--help" or word.endswith(".help") for word in words):
        with pytest.raises(SystemExit) as stop:
            main(words[1:])
        assert stop.value.code == 0
        return
    check_command(command)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_is_named_in_the_code_exists(page):
    for cell in code_cells(text_of(page)):
        path, _, dotted = cell.partition("::")
        assert (ROOT / path).is_file(), f"{cell}: no such file"
        if path.endswith(".py"):
            assert dotted in names(ROOT / path), f"{cell}: no such name"
        else:
            assert dotted in (ROOT / path).read_text(encoding="utf-8"), f"{cell}: no such name"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_pictures_exist(page):
    text = without_code(text_of(page))
    targets = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text) + re.findall(r'(?:src|href)="([^"#]+)"', text)
    for target in targets:
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", CHAPTER_PAGES, ids=name)
def test_a_page_has_its_parts_in_order(page):
    text, wanted = text_of(page), CHINESE if page.name.endswith("zh-CN.md") else ENGLISH
    assert re.match(rf"# {FOLDERS[page.parent.name]} \S", text)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    assert tuple(re.findall(r"^## (.*?)\s*$", outside, re.MULTILINE)) == wanted
    opening = text[: text.index("\n## ")]
    assert "```bash\n" in opening, "a page opens with its command"
    assert opening.index("README") < opening.index("```bash\n"), "links first"
    assert code_cells(text), "a page says where its ideas are in the code"
    assert re.search(r"!\[[^]]*\]\([^)]+\)|<img ", text), "a page shows a figure"


@pytest.mark.parametrize("folder", PAIRS, ids=name)
def test_both_languages_say_the_same(folder):
    english, chinese = (text_of(folder / one) for one in ("README.md", "README.zh-CN.md"))
    said = [[split(block) for block in blocks(text)] for text in (english, chinese)]
    assert said[0] == said[1], "commands"
    assert code_cells(english) == code_cells(chinese)
    pictures = [re.findall(r"!\[[^]]*\]\(([^)]+)\)", without_code(text)) for text in (english, chinese)]
    assert pictures[0] == pictures[1]


def exercises(text: str, heading: str) -> list[str]:
    """The numbered items below a heading."""
    part = text[text.index(f"\n## {heading}") :]
    part = part[: part.find("\n## ", 4)] if part.find("\n## ", 4) > 0 else part
    return re.findall(r"^(\d+\. .*?)(?=^\d+\. |\n\n|\Z)", part, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", CHAPTER_PAGES, ids=name)
def test_exercises_are_those_that_learn_checks(page):
    number = FOLDERS[page.parent.name]
    known = {one.id: one for one in chapter(number).exercises}
    items = exercises(text_of(page), CHINESE[4] if page.name.endswith("zh-CN.md") else ENGLISH[4])
    assert items
    for place, item in enumerate(items, 1):
        own = f"{number}.{place}"
        said = set(re.findall(r"lightning-gpt\s+learn\s+(?:check|start|hint)\s+([\d.]*\d)", item))
        assert said == {own}, f"exercise {place} names {said}"
        assert own in known, f"{own} is no exercise of learning/chapter_{number}.py"
        stars = re.search(r"★+", item)
        assert stars and len(stars[0]) == known[own].stars, f"{own}: stars"
        stub = "learn start" in " ".join(item.split())
        assert not stub or known[own].kind == "component", f"{own} has no stub"
    for identifier in re.findall(r"lightning-gpt\s+learn\s+(?:check|start|hint)\s+(\d[\d.]*\d)", text_of(page)):
        chosen(identifier)


def test_a_corpus_is_prepared_alike_on_all_pages():
    """Whoever walks on would otherwise be told that the folder holds another preparation."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for _, command in commands():
        words = shlex.split(command)
        if words[:2] == ["lightning-gpt", "prepare"] and "--out" in words and "--overwrite" not in words:
            place = words.index("--out")
            found.setdefault(words[place + 1], set()).add(tuple(sorted(words[2:place] + words[place + 2 :])))
    assert len(found["data/shakespeare_char"]) == 1
    assert not {out: ways for out, ways in found.items() if len(ways) > 1}


def test_a_page_that_is_wrong_is_noticed():
    assert split("a --b 'c | d' \\\n  e  # note; f\nA=1 g > out.txt && h &\n") == [
        "a --b 'c | d' e",
        "A=1 g",
        "h",
    ]
    own = names(Path(__file__))
    assert {"ROOT", "names", "test_a_page_that_is_wrong_is_noticed"} <= own and "nothing" not in own
    assert "Exercise.stars" in names(Path(__file__).parents[2] / "lightning_gpt/learning/exercise.py")
    assert exercises("# t\n\n## Exercises\n\n1. ★ one\n   more\n2. two\n\n## Papers\n3. no\n", "Exercises") == [
        "1. ★ one\n   more\n",
        "2. two\n",
    ]
