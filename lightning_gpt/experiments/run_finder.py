"""From what a user types - globs, directories, files - to run directories and short names for them."""

import difflib
import glob
import re
from collections.abc import Sequence
from pathlib import Path

from lightning_gpt.experiments.run_reader import CSV_FILE, METRICS_FILE, is_run


def find_runs(patterns: Sequence[str]) -> list[Path]:
    """Every run directory at or below what the patterns name, each once, in natural order.

    Args:
        patterns: directories, event files, metrics.jsonl, metrics.csv, or globs of them; ** crosses directories.

    Raises:
        ValueError: a pattern without a run.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = (
            [Path(pattern)] if Path(pattern).exists() else [Path(one) for one in glob.glob(pattern, recursive=True)]
        )
        runs = dict.fromkeys(run for match in sorted(matches, key=natural) for run in _runs_of(match))
        if not runs:
            raise ValueError(f"no run in {pattern!r}{_why(pattern, matches)}")
        found |= runs
    unique = {path.resolve(): path for path in reversed(found)}
    return [path for path in found if unique[path.resolve()] is path]


def _runs_of(match: Path) -> list[Path]:
    if match.is_file():
        logs = match.name in (METRICS_FILE, CSV_FILE) or "tfevents" in match.name
        return [match.parent] if logs and is_run(match.parent) else []
    below = [match, *(path for path in match.rglob("*") if path.is_dir())]
    return sorted(filter(is_run, below), key=natural)


def _why(pattern: str, matches: list[Path]) -> str:
    """What is there instead."""
    if matches:
        return ": nothing there holds metrics.jsonl, metrics.csv or TensorBoard event files"
    place = Path(pattern)
    while not place.exists() and place != place.parent:
        missing, place = place.name, place.parent
    siblings = [path.name for path in place.iterdir()] if place.is_dir() else []
    near = difflib.get_close_matches(missing, siblings, n=1)
    return f": nothing matches, did you mean {str(place / near[0])!r}?" if near else ": nothing matches"


def natural(path: Path) -> list[tuple[int, str]]:
    """Sort key by which version_2 comes before version_10."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def short_names(directories: Sequence[Path]) -> list[str]:
    """Names of runs: their paths without the parts that all of them begin or end with."""
    parts = [path.resolve().parts for path in directories]
    if len(parts) == 1:
        return ["/".join(parts[0][-2:])]
    begin = end = 0
    shortest = min(map(len, parts))
    while begin < shortest and len({one[begin] for one in parts}) == 1:
        begin += 1
    while end < shortest - begin and len({one[-1 - end] for one in parts}) == 1:
        end += 1
    return ["/".join(one[begin : len(one) - end]) or one[-1] for one in parts]
