"""results.json: everything that a report is made of, so that it can be rewritten without the runs."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_gpt.data.corpus_meta import CorpusMeta
from lightning_gpt.data.tokenizer_source import load_tokenizer
from lightning_gpt.experiments.budgets import budget_in_words
from lightning_gpt.experiments.cell_run import metrics_of, read_state
from lightning_gpt.experiments.comparisons import comparisons_json
from lightning_gpt.experiments.experiment_board import BoardCell, write_experiment_board
from lightning_gpt.experiments.machine import hardware, versions
from lightning_gpt.experiments.metrics import LARGER
from lightning_gpt.experiments.plan import Cell
from lightning_gpt.experiments.spec import Experiment

RESULTS_FILE = "results.json"
LOAD_PREFIX, FOUND_PREFIX = "expert_load_", "retrieval_"
PICTURES = {"expert_load.png": LOAD_PREFIX, "retrieval.png": FOUND_PREFIX}
"""What runs draw -> beginning of its name beside the report."""


def collect_results(experiment: Experiment, cells: list[Cell], command: str) -> dict[str, Any]:
    """Numbers of finished cells with what they were made on; nothing in it depends on the date.

    Args:
        experiment: the checked file.
        cells: of plan_cells.
        command: what makes these results again.

    Raises:
        ValueError: a cell is not finished.
    """
    one_of_each = {cell.variant: cell for cell in cells}
    units = {cell.loss_unit for cell in cells}
    results = {
        "format": 1,
        "command": command,
        "question": experiment.question,
        "expectation": experiment.expectation,
        "notes": experiment.notes,
        "configs": [path.as_posix() for path in experiment.configs],
        "measure": experiment.measure,
        "axis": experiment.axis,
        "scatter": experiment.scatter,
        "budget": "" if experiment.measure else budget_in_words(experiment),
        "overrides": experiment.overrides,
        "variants": {
            name: {**v.overrides, **_prefixed("prepare", v.prepare), **_prefixed("budget", v.budget)}
            for name, v in experiment.variants.items()
        },
        "metrics": experiment.metrics,
        "better": experiment.better,
        "loss_unit": units.pop() if len(units) == 1 else "",
        "curve": experiment.curve,
        "equal": experiment.equal,
        "against": experiment.against,
        "identical_within": experiment.identical_within,
        "fewer_seeds": experiment.fewer_seeds,
        "needs": experiment.needs,
        "corpora": {name: _corpus(cell) for name, cell in one_of_each.items() if cell.data_dir},
        "files": {name: [asdict(one) for one in cell.files] for name, cell in one_of_each.items() if cell.files},
        "hardware": hardware(),
        "versions": versions(),
        "config_hash": hashlib.sha256("".join(cell.config_hash for cell in cells).encode()).hexdigest(),
        "cells": [_cell(experiment, cell) for cell in cells],
    }
    return results | {"comparisons": comparisons_json(results)}


def save_results(results: dict[str, Any], directory: Path) -> Path:
    """Writes results.json, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / RESULTS_FILE
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(_compact(results) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def save_board(experiment: Experiment, cells: list[Cell], results: dict[str, Any]) -> Path:
    """Writes the experiment's table and charts for `tensorboard --logdir` of the returned directory.

    Args:
        experiment: the checked file.
        cells: of plan_cells, all finished.
        results: of collect_results.
    """
    root = cells[0].directory.parent.parent
    rows = [
        BoardCell(
            directory=cell.directory / "version_0",
            variant=cell.variant,
            seed=cell.seed,
            overrides=results["variants"][cell.variant],
            metrics=found["final"],
            status=found["status"],
            step=cell.max_steps,
        )
        for cell, found in zip(cells, results["cells"])
    ]
    write_experiment_board(root, rows, experiment.metrics)
    return root


def save_pictures(cells: list[Cell], directory: Path) -> None:
    """Copies what the first seed's runs drew, of their experts or of the pictures that they find, if anything, to
    <PICTURES' prefix><variant>.png."""
    for cell in cells:
        for name, prefix in PICTURES.items():
            drawn = cell.directory / "version_0" / name
            if cell.seed == cells[0].seed and drawn.exists():
                path = directory / f"{prefix}{cell.variant}.png"
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                if prefix == FOUND_PREFIX:
                    _lighter(drawn, temporary)
                else:
                    shutil.copyfile(drawn, temporary)
                os.replace(temporary, path)


def _lighter(picture: Path, target: Path) -> None:
    """A PNG in 96 colours: sheets of pictures are large, and reports are kept."""
    from PIL import Image

    with Image.open(picture) as opened:
        opened.quantize(96).save(target, "PNG", optimize=True)


def load_results(directory: Path) -> dict[str, Any]:
    """Reads results.json.

    Raises:
        ValueError: it is missing or not ours.
    """
    path = directory / RESULTS_FILE
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: run the experiment first") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): run the experiment again, finished cells are kept") from None
    if not isinstance(results, dict) or results.get("format") != 1:
        raise ValueError(f"{path} is not format 1, which this version reads: run the experiment again")
    return results


def _prefixed(group: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {f"{group}.{key}": value for key, value in settings.items()}


def _corpus(cell: Cell) -> dict[str, Any]:
    """What a reader must know of the text and how it was cut."""
    meta = CorpusMeta.load(cell.data_dir)
    val = meta.splits.get("val") or meta.split("train")
    return {
        "name": meta.name,
        "scheme": meta.tokenizer.scheme,
        "vocab_size": meta.tokenizer.vocab_size,
        "lossless": load_tokenizer(cell.data_dir).lossless,
        "unknown_tokens": sum(split.unknown_tokens for split in meta.splits.values()),
        "train_tokens": meta.split("train").tokens,
        "val_tokens": val.tokens,
        "val_bytes_per_token": _round(val.bytes_per_token),
    }


def _cell(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    state, rows = read_state(cell), metrics_of(cell)
    if state is None or not state.finished:
        raise ValueError(f"{cell.variant} seed {cell.seed} is not finished: run the experiment again")
    series = {name: [row[name] for row in rows if name in row] for name in (*experiment.metrics, experiment.curve)}
    speeds = [row["speed/tokens_per_second"] for row in rows if "speed/tokens_per_second" in row]
    tokens = cell.tokens_per_step * cell.max_steps if cell.tokens_per_step else None
    done = state.status == "done"
    return {
        "variant": cell.variant,
        "seed": cell.seed,
        "status": state.status,
        "message": state.message,
        "final": {name: values[-1] for name, values in series.items() if values} if done else {},
        "best": {name: _best(experiment, name)(values) for name, values in series.items() if values} if done else {},
        "parameters": cell.parameters,
        "body_parameters": cell.body_parameters,
        "active_parameters": cell.active_parameters,
        "steps": cell.max_steps,
        "tokens": tokens,
        "training_flops": _round(cell.training_flops) if cell.training_flops else None,
        "flops_per_step": cell.tokens_per_step * cell.flops_per_token if tokens and cell.flops_per_token else None,
        "step_seconds": cell.step_seconds,
        "foretold_seconds": _round(cell.seconds) if cell.seconds else None,
        "training_seconds": _training_seconds(rows, cell.max_steps),
        "seconds": state.seconds,
        "attempts": state.attempts,
        "tokens_per_second": _round(sorted(speeds)[len(speeds) // 2]) if speeds else None,
        "peak_memory_bytes": state.peak_memory_bytes,
        "config_hash": cell.config_hash,
        "points": _points(rows, experiment.curve),
    }


def _best(experiment: Experiment, metric: str) -> Callable[[list[float]], float]:
    return max if experiment.better[metric] == LARGER else min


def _with_seconds(rows: list[dict[str, float]]) -> Iterator[tuple[dict[str, float], float | None]]:
    """Each row with the seconds of training by then, of all attempts: validation and saving do not count; None where no
    speed had been logged yet."""
    seconds, tokens = None, 0.0
    for row in rows:
        if rate := row.get("speed/tokens_per_second"):
            seconds = (seconds or 0.0) + (row["progress/tokens"] - tokens) / rate
            tokens = row["progress/tokens"]
        yield row, seconds


def _training_seconds(rows: list[dict[str, float]], steps: int) -> float | None:
    """Of the whole run; steps after the last that was logged took as long as those before them."""
    logged = [(row["step"], seconds) for row, seconds in _with_seconds(rows) if row.get("speed/tokens_per_second")]
    return round(logged[-1][1] * steps / logged[-1][0], 3) if logged else None


def _points(rows: list[dict[str, float]], curve: str) -> list[list[float | None]]:
    """[step, value, seconds of training by then] of each row that has the curve."""
    return [
        [row["step"], _round(row[curve], 8), None if seconds is None else round(seconds, 3)]
        for row, seconds in _with_seconds(rows)
        if curve in row
    ]


def _round(value: float, digits: int = 5) -> float:
    return float(f"{value:.{digits}g}")


def _compact(results: dict[str, Any]) -> str:
    """Indented, but each cell's points on one line."""
    shells = [{**cell, "points": f"@{i}@"} for i, cell in enumerate(results["cells"])]
    text = json.dumps({**results, "cells": shells}, indent=1, ensure_ascii=False)
    for i, cell in enumerate(results["cells"]):
        text = text.replace(f'"@{i}@"', json.dumps(cell["points"], separators=(",", ":")))
    return text
