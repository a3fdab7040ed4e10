"""Runs side by side: the settings that differ beside the metrics, at their ends or where all of them were."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightning_gpt.experiments.group_statistics import Interval, corrected, difference_of, mean_of
from lightning_gpt.experiments.run_filter import resolve
from lightning_gpt.experiments.run_finder import short_names
from lightning_gpt.experiments.run_reader import Run

AXES = {"step": "optimizer steps", "tokens": "tokens", "flops": "training FLOPs", "time": "seconds of training"}
SEEDS = ("seed_everything", "data.seed", "seed")
DATA = ("data_dir", "data_path", "dataset", "dataset_name", "data_root", "data.fingerprint")
"""Last parts of settings that name the data."""
WITHOUT_EFFECT = re.compile(
    r"(run|progress|samples|best|last|curve|attention)\..*|ckpt_path|weights_only|data\.(num_workers|pin_memory)|"
    r"trainer\.(logger|callbacks|default_root_dir|profiler|log_every_n_steps|val_check_interval|enable_\w+)(\..*)?"
)
"""Settings that decide where a run is kept and what is seen of it, not what it computes."""
PLACE = re.compile(rf"(?:({'|'.join(AXES)})\s*[ =:]\s*)?(common|[-+.\deE]+)")
ENDED_OTHERWISE = ("running", "unfinished", "interrupted", "failed", "diverged")
SKIPPED_TAGS = re.compile(r"epoch|hp_metric|step|lr.*")


@dataclass
class Row:
    """A run, or runs that differ by seed only."""

    name: str
    runs: list[Run]
    settings: dict[str, Any]
    """Those of Comparison.settings that it has."""
    metrics: dict[str, Interval] = field(default_factory=dict)
    """By tag; a metric that it lacks, or has not come to, is left out."""
    differences: dict[str, Interval] = field(default_factory=dict)
    """By tag, to the baseline."""

    @property
    def status(self) -> str:
        """How its runs stand; "3 done, 1 diverged" when they differ."""
        counts: dict[str, int] = {}
        for run in self.runs:
            shown = {"running": "running or killed"}.get(run.status, run.status)
            counts[shown] = counts.get(shown, 0) + 1
        return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {name or '?'}" for name, n in counts.items())

    @property
    def tokens_per_second(self) -> float | None:
        """Mean over its runs of the median over training."""
        tags = [next((tag for tag in run.series if "tokens_per_sec" in tag), None) for run in self.runs]
        return _mean([float(np.median(run.series[tag].values)) for run, tag in zip(self.runs, tags) if tag])

    @property
    def seconds(self) -> float | None:
        """Mean wall time."""
        return _mean([run.seconds for run in self.runs if run.seconds is not None])

    @property
    def peak_memory_bytes(self) -> float | None:
        """Mean over its runs."""
        return _mean([run.peak_memory_bytes for run in self.runs if run.peak_memory_bytes is not None])


@dataclass
class Comparison:
    """What `compare` prints and draws."""

    rows: list[Row]
    settings: list[str]
    """Names of those that differ, in the order of the configuration."""
    metrics: list[str]
    baseline: str | None
    """Name of a row."""
    axis: str
    place: float | None
    """On `axis`; None: values are those at the end of each run."""
    grouped: bool
    notes: list[str]
    """What a reader must know, a sentence each."""


def compare(
    runs: Sequence[Run],
    metrics: Sequence[str] = (),
    at: str | None = None,
    axis: str = "step",
    against: str | None = None,
    group: bool = False,
    sort: str | None = None,
) -> Comparison:
    """Makes the table.

    Args:
        runs: of read_run.
        metrics: tags; none: validation and training loss, or what there is.
        at: "tokens=1e6", "common" (the largest place on `axis` that all have): between two entries of a run the value
            is interpolated linearly. None: the last values.
        axis: where `at` and curves are measured, a key of AXES.
        against: row that the others are compared with; None with `group`: the first.
        group: put runs that differ by seed only into one row.
        sort: metric or setting, the smallest first; "-" before it: the largest first.

    Raises:
        ValueError: an unknown metric, place, axis, baseline; a place that no run has come to; --group without two runs
            of one kind. One line.
    """
    notes = [warning for run in runs for warning in run.warnings]
    known = {tag for run in runs for tag in run.series}
    if not known:
        told = notes + [f"{run.directory} {run.status}: {run.message}" for run in runs if run.message]
        raise ValueError(f"none of {len(runs)} run(s) logged a number" + (f" ({told[0]})" if told else ""))
    chosen = [resolve(name, known, "--metrics") for name in metrics] or default_metrics(known)
    key, descending = (sort or "").removeprefix("-"), (sort or "").startswith("-")
    settings = differing_settings(runs)
    if key:
        key = resolve(key, known | {name for run in runs for name in run.settings}, "--sort")
        if key in known and key not in chosen:
            chosen.append(key)
    axis, place = _place(runs, chosen[0], at, axis, notes)
    rows = _rows(runs, settings, group)
    if group:
        settings = [name for name in settings if name not in SEEDS]
        _check_groups(rows, notes)
    for row in rows:
        values = {tag: values_of(row, tag, axis, place, group) for tag in chosen}
        row.metrics = {tag: mean_of(list(one.values())) for tag, one in values.items() if one}
    if place is not None and not any(row.metrics for row in rows):
        raise ValueError(f"--at: no run logged {chosen[0]} up to {place:g} {AXES[axis]}")
    for tag in chosen:
        absent = [row.name for row in rows if tag not in row.metrics]
        if absent and place is not None:
            notes.append(f"no {tag} at {place:,.6g} {AXES[axis]}: {', '.join(absent)}")
    if group or against:
        names = [row.name for row in rows]
        baseline = rows[names.index(_named(against, rows))] if against else rows[0]
        _subtract(rows, baseline, chosen, axis, place, group)
    _note_data(runs, rows, settings, chosen, notes)
    _note_lengths(rows, chosen[0], place, notes)
    if key:
        first = [(_sort_value(row, key), row) for row in rows]
        there = sorted((one for one in first if one[0] is not None), key=lambda one: one[0], reverse=descending)
        rows = [row for _, row in there] + [row for value, row in first if value is None]
    name = baseline.name if group or against else None
    return Comparison(rows, settings, chosen, name, axis, place, group, list(dict.fromkeys(notes)))


def default_metrics(tags: set[str]) -> list[str]:
    """Validation and training loss; of a foreign run the names that look most like them."""
    ours = [tag for tag in ("val/loss", "train/loss") if tag in tags]
    if ours:
        return ours
    plain = sorted(tag for tag in tags if not SKIPPED_TAGS.fullmatch(tag))
    losses = [tag for tag in plain if "loss" in tag.lower()]
    return sorted(losses, key=lambda tag: "val" not in tag.lower())[:3] or plain[:3] or sorted(tags)[:3]


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Names of the settings that are not the same in all runs and have an effect on what they compute."""
    names = dict.fromkeys(name for run in runs for name in run.settings if not WITHOUT_EFFECT.fullmatch(name))
    prints = {run.data_fingerprint for run in runs}
    same_data = len(prints) == 1 and None not in prints
    return [
        name
        for name in names
        if len({_text(run.settings.get(name)) for run in runs}) > 1 and not (same_data and name == "data.data_dir")
    ]


def value_at(run: Run, tag: str, axis: str = "step", place: float | None = None) -> float | None:
    """The value of a metric at a place on an axis, interpolated linearly; at None the last.

    None: the run did not log it, was not there yet, or the value is not finite.
    """
    series = run.series.get(tag)
    if series is None or not len(series.values):
        return None
    if place is None:
        return series.last if math.isfinite(series.last) else None
    places = run.axis(axis, series.steps)
    if places is None or place < places[0] * (1 - 1e-9) or place > places[-1] * (1 + 1e-9):
        return None
    value = float(np.interp(place, places, series.values))
    return value if math.isfinite(value) else None


def values_of(row: Row, tag: str, axis: str, place: float | None, group: bool) -> dict[Any, float]:
    """Seed (or a number, where seeds are unknown) -> value, of a row's runs.

    In groups a run that did not come to its end has no final value; at a `place` it has one.
    """
    values: dict[Any, float] = {}
    for number, run in enumerate(row.runs):
        if group and place is None and run.status in ENDED_OTHERWISE:
            continue
        value = value_at(run, tag, axis, place)
        if value is not None:
            seed = tuple(run.settings.get(name) for name in SEEDS)
            values[seed if any(one is not None for one in seed) and seed not in values else f"run {number}"] = value
    return values


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _place(runs: Sequence[Run], tag: str, at: str | None, axis: str, notes: list[str]) -> tuple[str, float | None]:
    """The axis, and the place on it."""
    wanted = at
    if at is not None:
        match = PLACE.fullmatch(at.strip())
        try:
            axis, wanted = (match[1] or axis), (match[2] if match[2] == "common" else float(match[2]))
        except (TypeError, ValueError):
            raise ValueError(
                f"--at {at!r}: write a number or `common`, after one of {', '.join(AXES)}, as in tokens=1e6"
            ) from None
    if axis not in AXES:
        raise ValueError(f"--x {axis!r} is none of {', '.join(AXES)}")
    ends = {}
    for run in runs:
        if tag in run.series:
            places = run.axis(axis, run.series[tag].steps)
            ends[run.directory] = None if places is None else float(places[-1])
    known = [end for end in ends.values() if end is not None]
    if ends and not known:
        raise ValueError(
            f"no run says how its steps lie on {axis!r} ({AXES[axis]}): choose another of {', '.join(AXES)}"
        )
    if len(known) < len(ends):
        silent = [directory for directory, end in ends.items() if end is None]
        notes.append(f"{', '.join(map(str, silent))}: does not log {AXES[axis]}")
    if wanted == "common":
        if not known:
            raise ValueError(f"--at common: no run logged {tag}")
        wanted = min(known)
    return axis, wanted


def _rows(runs: Sequence[Run], settings: list[str], group: bool) -> list[Row]:
    names = short_names([run.directory for run in runs])
    groups: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        kept = {name: run.settings.get(name) for name in settings if name not in SEEDS}
        groups.setdefault(_text(kept) if group and run.settings else str(number), []).append(number)
    rows = []
    for members in groups.values():
        first = runs[members[0]]
        shown = {name: first.settings[name] for name in settings if name in first.settings}
        rows.append(Row(_shared([names[number] for number in members]), [runs[number] for number in members], shown))
    taken = [row.name for row in rows]
    for row in rows:
        if not row.name or taken.count(row.name) > 1:
            told = [f"{name.rpartition('.')[2]}={value}" for name, value in row.settings.items() if name not in SEEDS]
            row.name = ", ".join(told[:3]) or names[runs.index(row.runs[0])]
    return rows


def _shared(names: list[str]) -> str:
    """The leading parts that names of one group share."""
    if len(names) == 1:
        return names[0]
    parts = [name.split("/") for name in names]
    shared = []
    for several in zip(*parts):
        if len(set(several)) > 1:
            break
        shared.append(several[0])
    return "/".join(shared)


def _check_groups(rows: list[Row], notes: list[str]) -> None:
    alone = [row.name for row in rows if len(row.runs) < 2]
    if len(alone) == len(rows):
        raise ValueError(
            "--group: no two of these runs differ by their seed only, so nothing has an interval: train more seeds, or "
            "leave --group out"
        )
    if alone:
        notes.append(f"one run only, hence no interval: {', '.join(alone)}")


def _named(against: str, rows: list[Row]) -> str:
    by_path = [row.name for row in rows if any(run.directory.as_posix() == against.rstrip("/") for run in row.runs)]
    if len(by_path) == 1:
        return by_path[0]
    return resolve(against, [row.name for row in rows], "--against")


def _subtract(rows: list[Row], baseline: Row, tags: list[str], axis: str, place: float | None, group: bool) -> None:
    for tag in tags:
        values = [values_of(row, tag, axis, place, group) for row in rows]
        theirs = values[rows.index(baseline)]
        found = {
            number: difference_of(ours, theirs)
            for number, (row, ours) in enumerate(zip(rows, values))
            if row is not baseline and ours and theirs
        }
        for number, difference in corrected(found).items():
            rows[number].differences[tag] = difference


def _sort_value(row: Row, key: str) -> Any:
    if key in row.metrics:
        return row.metrics[key].value
    values = [run.settings.get(key) for run in row.runs]
    return (isinstance(values[0], str), values[0]) if values[0] is not None else None


def _note_data(runs: Sequence[Run], rows: list[Row], settings: list[str], metrics: list[str], notes: list[str]) -> None:
    """Warns when losses were measured on different data."""
    prints = {run.data_fingerprint for run in runs if run.data_fingerprint}
    names = [name for name in settings if name.rpartition(".")[2] in DATA or name in DATA]
    if len(prints) < 2 and not names:
        return
    told = []
    for row in rows:
        for run in row.runs[:1]:
            where = [str(run.settings[name]) for name in names if name in run.settings]
            told.append(f"{row.name}: {', '.join(where) or (run.data_fingerprint or '?')[:8]}")
    shown = "; ".join(told[:4]) + ("; ..." if len(told) > 4 else "")
    bits = any("val/bits_per_byte" in run.series for run in runs) and "val/bits_per_byte" not in metrics
    advice = "; with other tokenizers compare --metrics val/bits_per_byte" if bits else ""
    notes.insert(0, f"these runs saw different data, so their losses may not be comparable ({shown}){advice}")


def _note_lengths(rows: list[Row], tag: str, place: float | None, notes: list[str]) -> None:
    if place is not None:
        return
    lengths = [int(run.series[tag].steps[-1]) for row in rows for run in row.runs if tag in run.series]
    if lengths and max(lengths) > min(lengths):
        notes.append(
            f"the last {tag} is of step {min(lengths):,} to {max(lengths):,}: --at common compares where all runs were"
        )
