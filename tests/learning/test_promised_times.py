"""Minutes that experiments' headers and pages promise are those of the committed reports."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "experiments").glob("*/README*.md"))


def measured(experiment: Path) -> float | None:
    """Minutes of all runs, by the report."""
    report = experiment.with_suffix("") / "report.md"
    found = re.search(r"All \d+ runs took ([\d.]+) minutes", report.read_text()) if report.exists() else None
    return float(found[1]) if found else None


def promised(experiment: Path) -> dict[str, float]:
    """Minutes by the place that promises them: the header, and lines of pages that run this experiment."""
    header = "".join(line for line in experiment.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    found = {"header": header}
    for page in PAGES:
        lines = page.read_text(encoding="utf-8").splitlines()
        found |= {
            f"{page.relative_to(ROOT)}: {line}": line
            for line in lines
            if f"{experiment.parent.name}/{experiment.name} " in line
        }
    minutes = {place: re.search(r"(\d+) (?:minutes|分钟)", text) for place, text in found.items()}
    return {place: float(match[1]) for place, match in minutes.items() if match}


COUNTED = [path for path in sorted((ROOT / "experiments").glob("*/*.yaml")) if measured(path) is not None]


@pytest.mark.parametrize("experiment", COUNTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_minutes_are_those_of_the_report(experiment):
    took = measured(experiment)
    # what comes before the runs, such as a corpus or the measurement of a step, is on top of the report's minutes
    off = {place: said for place, said in promised(experiment).items() if not 0.8 * took <= said <= 1.25 * took + 2}
    assert not off, f"the report has {took:g} minutes"
