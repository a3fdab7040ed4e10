"""The front door in two languages: what it says exists, and both say the same."""

import re
from pathlib import Path

import pytest
from test_house import README, ROOT, check_command, commands

CHINESE = ROOT / "README.zh-CN.md"
PAGES = [README, CHINESE]
LINK = re.compile(r"\]\(([^)\s]+)\)")
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def links(page: Path) -> list[str]:
    """Targets within the repository."""
    return [target for target in LINK.findall(read(page)) if not target.startswith("http")]


def anchors(page: Path) -> set[str]:
    """Names by which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def rows(page: Path, table: int) -> dict[str, list[str]]:
    """Cells of a table's rows by each row's first link; counted are tables with a link in every row."""
    blocks = re.findall(r"^\|[-:| ]+\|\n((?:\|.*\|\n)+)", read(page), re.MULTILINE)
    linked = [block.splitlines() for block in blocks if all(map(LINK.search, block.splitlines()))]
    return {LINK.search(line)[1]: [cell.strip() for cell in line.strip("|").split("|")] for line in linked[table]}


def numbers(text: str) -> list[str]:
    return sorted(NUMBER.findall(LINK.sub("]", text)))


PICTURES, MEASURED, PROJECTS = range(3)


def test_the_chinese_one_says_what_exists(clean_process, monkeypatch, capsys):
    """Its commands are README's, which test_house.py checks, and whatever else it has is checked here."""
    monkeypatch.chdir(ROOT)
    shared = set(commands(README)) & set(commands(CHINESE))
    assert len(shared) > 30
    for command in sorted(set(commands(CHINESE)) - shared):
        check_command(command)


def test_both_open_with_the_two_commands():
    for page in PAGES:
        assert commands(page)[:2] == ["make demo", "make test"], page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_their_headings_exist(page):
    for target in links(page):
        path, _, heading = target.partition("#")
        there = ROOT / path if path else page
        assert there.exists(), target
        assert not heading or heading in anchors(there), target


def test_each_opens_with_the_other_and_leads_to_its_own_path():
    for page, other, path in [
        (README, "README.zh-CN.md", "experiments/README.md"),
        (CHINESE, "README.md", "experiments/README.zh-CN.md"),
    ]:
        top = read(page).partition("```")[0]
        for target in (other, path, "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"):
            assert f"]({target})" in top, f"{page.name}: {target}"


def test_the_chinese_one_leads_to_every_chapter():
    chapters = {str(page.relative_to(ROOT)) for page in (ROOT / "experiments").glob("[0-9]*/README.zh-CN.md")}
    assert len(chapters) == 13
    assert chapters <= set(links(CHINESE))


@pytest.mark.parametrize(("table", "column"), [(MEASURED, 1), (PROJECTS, 2)], ids=["measured", "projects"])
def test_both_say_the_same_numbers(table, column):
    english, chinese = rows(README, table), rows(CHINESE, table)
    assert list(english) == list(chinese)
    for target, cells in english.items():
        assert numbers(cells[column]) == numbers(chinese[target][column]), target


def test_the_numbers_stand_in_the_reports():
    """As they are, rounded, or a share there and a percentage here."""
    table = rows(README, MEASURED)
    assert 8 <= len(table) <= 11
    for target, cells in table.items():
        reported = [float(number.replace(",", "")) for number in NUMBER.findall(read(ROOT / target))]
        for number in numbers(cells[1]):
            said = float(number.replace(",", ""))
            slack = 0.5 * 10.0 ** -len(number.partition(".")[2]) + 1e-9
            assert any(abs(said - scale * value) <= slack for value in reported for scale in (1, 100)), (target, number)
