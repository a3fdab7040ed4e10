"""Measured numbers on the pages and the front page stand in committed reports; both languages name the same.

A row or paragraph that names reports (in itself, or else in its table's head, or in the paragraph before the table) is
held to those, any other to all reports of its page. "a ± b" must stand there as a pair. What stands in no report is
listed in page_sources.py: worked out of numbers that do, read from another committed file, or no measurement at all.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from page_sources import GIVEN, SOURCES, worked_out
from test_pages import CHINESE, ENGLISH, PAGES, PAIRS, ROOT, name, text_of

SIGN, DIGITS = r"([-+−]?)", r"(\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
UNIT = r"\s?([%万亿]|(?:M|G|million)\b)?"
NUMBER = re.compile(rf"(?<![A-Za-z0-9_.,])(?<![A-Za-z0-9][-+]){SIGN}{DIGITS}(?![\d_]|[.,]\d|e[-+]?\d){UNIT}")
PAIR = re.compile(rf"{SIGN}{DIGITS}\s?%?\s*±\s*{DIGITS}\s?(%?)")
POWER = re.compile(r"\d+(?:\.\d+)?e[-+]?\d+")
LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)|`([\w./-]+\.(?:md|json))`")
UNITS = {"": (1, 100), "%": (1, 100), "M": (1, 1e-6), "million": (1, 1e-6), "G": (1, 1e-9)}
UNITS |= {"万": (1e2, 1e-4), "亿": (1e-2, 1e-8)}
"""By what a reported value may be multiplied to be what a page says; 万 and 亿 of millions or of ones."""
FRONT = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
CELLS = (ROOT, ROOT / "benchmarks/results", ROOT / "benchmarks/results/serving")
"""From where a report in `backticks` is named."""


class Unit(NamedTuple):
    """A row of a table, a list's item or a paragraph, and the texts that may name its reports, nearest first."""

    text: str
    row: bool
    naming: tuple[str, ...]


class Said(NamedTuple):
    """A number on a page, where it should stand, and its sentence."""

    digits: str
    unit: str
    reports: tuple[Path, ...]
    text: str


def units(text: str) -> Iterator[Unit]:
    """All of a page without its blocks of code, heads of tables and papers."""
    text = re.split(rf"^## (?:{ENGLISH[-1]}|{CHINESE[-1]})$", text, flags=re.MULTILINE)[0]
    before = ""
    for block in re.split(r"\n\s*\n", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)):
        lines = block.strip("\n").splitlines()
        if not lines or not lines[0].startswith("|"):
            parts = re.split(r"\n(?=- |\d+\. |\*\*)", block.strip("\n"))
            yield from (Unit(" ".join(part.split()), False, (part,)) for part in parts)
            before = block
            continue
        above = ""  # a row with an empty first cell goes on with the one above
        for line in lines[2:]:
            above = line if LINK.search(line) or line.strip("|").split("|")[0].strip() else above
            said = line.strip("|").split("|")[-1] if "](http" in line else line  # of projects only what is measured
            yield Unit(said, True, (above, lines[0], before))


@cache
def reports(page: Path, text: str) -> tuple[Path, ...]:
    """Those that a text names."""
    found = []
    for link, cell in LINK.findall(text):
        for path in (folder / (link or cell) for folder in (CELLS if cell else (page.parent,))):
            if path.suffix in (".md", ".json") and not path.name.startswith("README") and path.is_file():
                found.append(path.resolve())
    return tuple(found)


@cache
def all_reports(page: Path) -> tuple[Path, ...]:
    """Those below a page's folder and those that it names."""
    below = () if page in FRONT else page.parent.rglob("*.md")
    return tuple({path for path in below if not path.name.startswith("README")} | {*reports(page, text_of(page))})


def plain(text: str) -> str:
    """Without code, formulas and addresses."""
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]*\$|`[^`]*`", " ", text, flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", text)


def value(digits: str) -> float:
    return float(digits.replace(",", ""))


def same(reported: float, digits: str, coarse: bool = False) -> bool:
    """Whether a value is rounded to these digits; coarse: zeros at the end of a whole number are not counted."""
    zeros = len(digits) - len(digits.rstrip("0")) if coarse and "." not in digits else 0
    return abs(reported - value(digits)) <= 0.5 * 10.0 ** (zeros - len(digits.partition(".")[2])) * (1 + 1e-6)


@cache
def numbers_in(report: Path) -> frozenset[float]:
    text = report.read_text(encoding="utf-8")
    text = re.sub(r'"[^"]*":', "", text) if report.suffix == ".json" else re.sub(r"\]\([^)]*\)", "]", text)
    found = [(value(digits), unit) for _, digits, unit in NUMBER.findall(text)]
    millions = {number * 1e6 for number, unit in found if unit == "M"}
    return frozenset({number for number, _ in found} | millions | {*map(float, POWER.findall(text))})


@cache
def pairs_in(report: Path) -> tuple[tuple[str, float, float], ...]:
    found = PAIR.findall(report.read_text(encoding="utf-8"))
    return tuple((sign.replace("−", "-"), value(mean), value(half)) for sign, mean, half, _ in found)


@cache
def stands(report: Path, digits: str, unit: str) -> bool:
    return any(same(number * scale, digits, unit in "万亿") for number in numbers_in(report) for scale in UNITS[unit])


@cache
def stands_as_pair(report: Path, sign: str, mean: str, half: str, unit: str) -> bool:
    """A sign on the page must be the report's; "lower by" has none."""
    return any(
        sign in ("", own or "+") and any(same(a * scale, mean) and same(b * scale, half) for scale in UNITS[unit])
        for own, a, b in pairs_in(report)
    )


def precise(digits: str) -> bool:
    """Two digits that count with a point among them, or three before it: enough not to be met everywhere."""
    whole, _, rest = digits.replace(",", "").partition(".")
    return len(whole) > 2 or (bool(rest) and len((whole + rest).lstrip("0")) > 1)


def named(page: Path, unit: Unit) -> tuple[Path, ...]:
    """A unit's reports; on the front page, where every result names its own, those alone."""
    own = next(filter(None, (reports(page, text) for text in unit.naming)), ())
    return own or (() if page in FRONT else all_reports(page))


def measured(page: Path) -> Iterator[Said]:
    """Every number of a table's rows, and of prose the precise ones."""
    for unit in units(text_of(page)):
        where = named(page, unit)
        for _, digits, suffix in NUMBER.findall(plain(unit.text)) if where or page not in FRONT else ():
            if unit.row or precise(digits):
                yield Said(digits, suffix, where, unit.text)


def sources(page: Path) -> dict[str, str]:
    return SOURCES.get("front" if page in FRONT else page.parent.name, {})


def keys(said: Said) -> list[str]:
    """Under which a number may have its source."""
    return [said.digits, *(f"{said.digits} of {report.parent.name}" for report in said.reports)]


def label(page: Path) -> str:
    return f"front/{page.name}" if page in FRONT else name(page)


@pytest.mark.parametrize("page", PAGES + FRONT, ids=label)
def test_numbers_stand_in_reports(page):
    known = sources(page)
    for said in measured(page):
        source = next((known[key] for key in keys(said) if key in known), None)
        if source is None:
            stand = any(stands(report, said.digits, said.unit) for report in said.reports)
            assert stand, f"{said.digits} stands in no report: {said.text}"
        elif source != GIVEN:
            assert same(worked_out(source), said.digits, coarse=True), f"{said.digits} is not {source}: {said.text}"


def intervals(page: Path) -> Iterator[tuple[str, str, str, str, Unit]]:
    """Sign, mean, half-width, unit, and where they are said."""
    for unit in units(text_of(page)):
        yield from ((*pair, unit) for pair in PAIR.findall(unit.text) if named(page, unit))


@pytest.mark.parametrize("page", PAGES + FRONT, ids=label)
def test_intervals_stand_in_reports(page):
    for sign, mean, half, suffix, unit in intervals(page):
        source = sources(page).get(f"{mean} ± {half}")
        if source:
            found = [same(number, digits) for number, digits in zip(worked_out(source), (mean, half), strict=True)]
            assert all(found), f"{mean} ± {half} is not {source}"
        else:
            found = [stands_as_pair(report, sign, mean, half, suffix) for report in named(page, unit)]
            assert any(found), f"{sign}{mean} ± {half} stands in no report: {unit.text}"


@pytest.mark.parametrize("page", [page for page in PAGES + FRONT if page.name == "README.md"], ids=label)
def test_sources_are_used_and_their_numbers_stand_in_reports(page):
    both = [page, page.with_name("README.zh-CN.md")]
    said = {key for one in both for number in measured(one) for key in keys(number)}
    said |= {f"{mean} ± {half}" for one in both for _, mean, half, _, _ in intervals(one)}
    for key, source in sources(page).items():
        assert key in said, f"{key} is on the page no more"
        for number in re.findall(r"\d+\.\d+", re.sub(r'"[^"]*"', "", source)) if source != GIVEN else ():
            assert any(stands(report, number, "") for report in all_reports(page)) or not precise(number), (key, number)


def exact_numbers(page: Path) -> set[str]:
    """Three digits that count, and a point or comma, but no millions, which are 万 in Chinese."""
    found = (NUMBER.findall(plain(unit.text)) for unit in units(text_of(page)))
    exact = {digits for one in found for _, digits, unit in one if unit in ("", "%", "G") and re.search("[.,]", digits)}
    return {digits for digits in exact if len(re.sub("[.,]", "", digits).lstrip("0")) > 2}


@pytest.mark.parametrize("folder", PAIRS, ids=name)
def test_both_languages_name_the_same_numbers(folder):
    """Every interval, every exact number, and each row's."""
    pages = [folder / "README.md", folder / "README.zh-CN.md"]
    english, chinese = (sorted((mean, half) for _, mean, half, *_ in intervals(page)) for page in pages)
    assert english == chinese
    english, chinese = (exact_numbers(page) for page in pages)
    assert english == chinese
    english, chinese = ([unit for unit in units(text_of(page)) if unit.row] for page in pages)
    assert len(english) == len(chinese)
    for here, there in zip(english, chinese, strict=True):
        both = [
            sorted(digits for _, digits, _ in NUMBER.findall(plain(row.text)) if precise(digits))
            for row in (here, there)
        ]
        assert both[0] == both[1], here.text


def test_a_wrong_number_is_noticed(tmp_path):
    report = tmp_path / "report.md"
    report.write_text(
        "loss 2.4660 ± 0.0406, muon -0.5199 ± 0.0933, 9,134 tokens/s, 0.813 ± 0.023, 3,185,920, 1.1e-05\n"
    )
    assert stands(report, "2.47", "") and not stands(report, "2.46", "")
    assert stands(report, "9,134", "") and not stands(report, "9,143", "")
    assert stands(report, "3.2", "M") and stands(report, "320", "万") and not stands(report, "3.1", "M")
    assert stands_as_pair(report, "", "0.520", "0.093", "") and stands_as_pair(report, "-", "0.5199", "0.0933", "")
    assert not stands_as_pair(report, "+", "0.5199", "0.0933", "")
    assert not stands_as_pair(report, "", "0.5199", "0.0406", "")
    assert stands_as_pair(report, "", "81.3", "2.3", "%") and not stands_as_pair(report, "", "81.3", "23", "%")
    assert not stands(report, "81.4", "%")
    table = "| a | [r](x/report.md) |\n|---|---|\n| b | 1.5 |\n\n"
    table = f"Before\n\n{table}```\n7.5\n```\n\n- one 2.5\n- two\n\n## Papers\n\n2019\n"
    assert [(unit.text, unit.row) for unit in units(table) if unit.text] == [
        ("Before", False),
        ("| b | 1.5 |", True),
        ("- one 2.5", False),
        ("- two", False),
    ]
