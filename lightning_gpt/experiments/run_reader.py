"""Reads runs back: what they were set to, what they logged, how they ended. Ours and any run of Lightning's loggers."""

import csv
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lightning_gpt.callbacks.board import COST, FINAL
from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.callbacks.run_record import read_record
from lightning_gpt.callbacks.run_settings import flat_settings
from lightning_gpt.data.corpus_meta import META_FILE

METRICS_FILE, CSV_FILE = "metrics.jsonl", "metrics.csv"
EVENTS = "*tfevents*"
STATE_FILE = "state.json"
TOKEN_TAGS = ("progress/tokens", "total_tokens", "tokens", "tokens_seen", "train/tokens", "train/total_tokens")
"""Names under which runs count the tokens that they were trained on, ours first."""


@dataclass
class Series:
    """One logged number over training."""

    steps: np.ndarray
    """(N,) ascending."""
    values: np.ndarray
    """(N,)."""
    times: np.ndarray | None = None
    """(N,) seconds since the epoch; None: the log does not say."""

    @property
    def last(self) -> float:
        """The final value."""
        return float(self.values[-1])


@dataclass
class Run:
    """What is known of a run."""

    directory: Path
    settings: dict[str, Any] = field(default_factory=dict)
    """Dotted names without init_args, as `flat_settings` makes them."""
    series: dict[str, Series] = field(default_factory=dict)
    """By tag."""
    status: str = ""
    """done, running (or killed), interrupted, failed, diverged, stopped early, or "": it cannot be told."""
    message: str = ""
    seconds: float | None = None
    """Wall time."""
    peak_memory_bytes: int | None = None
    data_fingerprint: str | None = None
    """Of a corpus that `prepare` made: equal for equal ids."""
    warnings: list[str] = field(default_factory=list)
    """What could not be read, in a line each."""

    def axis(self, name: str, steps: np.ndarray) -> np.ndarray | None:
        """Where optimizer steps lie on another axis; None: the run does not say.

        Args:
            name: step; tokens; flops (analytic, forward and backward); time (seconds of training, without validations
                where the run logs its speed, otherwise since its first entry).
            steps: (N,).
        """
        if name == "step":
            return np.asarray(steps, dtype=float)
        known = {"tokens": self._tokens, "flops": self._flops, "time": self._times}[name]()
        if known is None:
            return None
        known_steps, places = known
        # Steps beyond the last entry go on at the mean pace: a validation can come after it.
        beyond = places[-1] * steps / known_steps[-1] if known_steps[-1] > 0 else np.full(len(steps), places[-1])
        return np.where(steps > known_steps[-1], beyond, np.interp(steps, known_steps, places))

    def _tokens(self) -> tuple[np.ndarray, np.ndarray] | None:
        found = next((self.series[tag] for tag in TOKEN_TAGS if tag in self.series), None)
        if found is None:
            return None
        return np.concatenate(([0], found.steps)), np.concatenate(([0.0], found.values))

    def _flops(self) -> tuple[np.ndarray, np.ndarray] | None:
        tokens, rate = self._tokens(), self.series.get("speed/tokens_per_second")
        flops = self.series.get("speed/tflops")
        if tokens is None or rate is None or flops is None or len(rate.values) != len(flops.values):
            return None
        per_token = float(np.median(flops.values / rate.values)) * 1e12
        return tokens[0], tokens[1] * per_token

    def _times(self) -> tuple[np.ndarray, np.ndarray] | None:
        tokens, rate = self._tokens(), self.series.get("speed/tokens_per_second")
        if tokens is not None and rate is not None and len(rate.values) == len(tokens[1]) - 1:
            return tokens[0], np.concatenate(([0.0], np.cumsum(np.diff(tokens[1]) / rate.values)))
        timed = [one for one in self.series.values() if one.times is not None]
        if not timed:
            return None
        steps = np.concatenate([one.steps for one in timed])
        times = np.concatenate([one.times for one in timed])
        order = np.argsort(steps, kind="stable")
        return steps[order], np.maximum.accumulate(times[order] - times.min())


def is_run(directory: Path) -> bool:
    """Whether a directory itself holds what a run logged."""
    return bool(
        (directory / METRICS_FILE).is_file()
        or (directory / CSV_FILE).is_file()
        or any(not path.name.endswith(".hparams") for path in directory.glob(EVENTS))
    )


def read_run(directory: Path) -> Run:
    """Reads metrics.jsonl, or else event files and metrics.csv, with config.yaml, or else hparams.yaml.

    What is damaged is read as far as it goes and named in `warnings`.
    """
    run = Run(directory)
    if (directory / METRICS_FILE).is_file():
        _read_jsonl(run)
    else:
        described = _read_events(run)
        if (directory / CSV_FILE).is_file():
            _read_csv(run)
        run.settings = described
    run.settings = _read_settings(run) or run.settings
    _read_ending(run)
    return run


def _read_jsonl(run: Run) -> None:
    path, rows = run.directory / METRICS_FILE, []
    try:
        rows = read_metrics(path)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if len(rows) < lines:
            run.warnings.append(f"{path} is damaged after {len(rows)} of {lines} rows: used up to there")
    except (OSError, UnicodeDecodeError) as error:
        run.warnings.append(f"{path} cannot be read ({error})")
    run.series = _series([row for row in rows if isinstance(row, dict)])


def _series(rows: Sequence[dict[str, float]]) -> dict[str, Series]:
    """Of rows with a step each; of two values at one step the later counts (a resumed run wrote it again)."""
    points: dict[str, dict[int, float]] = {}
    for row in rows:
        for tag, value in row.items():
            if tag != "step" and row.get("step") is not None and isinstance(value, int | float):
                points.setdefault(tag, {})[int(row["step"])] = value
    return {tag: _sorted(list(one), list(one.values())) for tag, one in points.items()}


def _sorted(steps: Sequence[int], values: Sequence[float], times: Sequence[float] | None = None) -> Series:
    order = np.argsort(steps, kind="stable")
    given = None if times is None else np.asarray(times, dtype=float)[order]
    return Series(np.asarray(steps)[order], np.asarray(values, dtype=float)[order], given)


class _Damages(logging.Handler):
    """Hears which event files TensorBoard's reader gave up before their end; it says so only in its debug log."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith("Truncated record"):
            self.lines.append(f"{record.args[0]} is cut off or damaged: used as far as it can be read")


def _read_events(run: Run) -> dict[str, Any]:
    """Adds the scalars of the event files; the settings that they hold for the HPARAMS tab."""
    if not any(run.directory.glob(EVENTS)):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    log, heard = logging.getLogger("tensorboard"), _Damages()
    level, propagate = log.level, log.propagate
    log.addHandler(heard)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    sizes = {"scalars": 0, "tensors": 1, "images": 1, "audio": 1, "histograms": 1, "compressedHistograms": 1}
    try:
        events = EventAccumulator(str(run.directory), size_guidance=sizes)  # 0: all; by default it draws 10,000
        events.Reload()
    except Exception as error:  # whatever a protocol buffer of noise raises
        run.warnings.append(f"{run.directory}: event files cannot be read ({type(error).__name__}: {error})")
        return {}
    finally:
        log.removeHandler(heard)
        log.setLevel(level)
        log.propagate = propagate
    run.warnings += dict.fromkeys(heard.lines)
    for tag in events.Tags()["scalars"]:
        if tag.startswith((FINAL, COST)):
            continue  # what our runs say in their row of the HPARAMS tab
        last = {one.step: one for one in events.Scalars(tag)}
        points = [last[step] for step in sorted(last)]
        steps, values, times = zip(*((one.step, one.value, one.wall_time) for one in points))
        run.series[tag] = _sorted(steps, values, times)
    try:
        contents = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG)
    except KeyError:
        return {}
    start = metadata.parse_session_start_info_plugin_data(contents.plugin_data.content)
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}


def _read_csv(run: Run) -> None:
    """Adds the columns of CSVLogger's metrics.csv that the event files lack."""
    path, rows = run.directory / CSV_FILE, []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), 2):
                try:
                    rows.append({key: float(value) for key, value in row.items() if value})
                except (TypeError, ValueError):
                    run.warnings.append(f"{path}: line {line} holds no numbers and is left out")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        run.warnings.append(f"{path} cannot be read ({error})")
    run.series = _series(rows) | run.series


class _Tolerant(yaml.SafeLoader):
    """Reads files with objects of Python in them without making those objects."""


def _as_plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        values = loader.construct_sequence(node, deep=True)
        return values[0] if len(values) == 1 else values  # an enum's value, say
    return suffix.removeprefix("name:") if suffix.startswith("name:") else loader.construct_scalar(node)


_Tolerant.add_multi_constructor("tag:yaml.org,2002:python/", _as_plain)


def _read_settings(run: Run) -> dict[str, Any]:
    for name in ("config.yaml", "hparams.yaml"):
        path = run.directory / name
        if not path.is_file():
            continue
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Tolerant)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            run.warnings.append(f"{path} is not YAML: {' '.join(str(error).split())}")
            continue
        if isinstance(content, dict) and content:
            return flat_settings(content)
    return {}


def _read_ending(run: Run) -> None:
    """status, message, seconds, peak memory: from run.json, from an experiment's state.json, or from the numbers."""
    record = read_record(run.directory)
    try:
        state = json.loads((run.directory.parent / STATE_FILE).read_text(encoding="utf-8"))
        record |= state if isinstance(state, dict) and "config_hash" in state else {}
    except (OSError, ValueError):
        pass
    run.status, run.message = record.get("status", ""), record.get("message", "")
    run.seconds, run.peak_memory_bytes = record.get("seconds"), record.get("peak_memory_bytes")
    run.data_fingerprint = record.get("data_fingerprint") or _fingerprint(run.settings.get("data.data_dir"))
    last_step = max((int(one.steps[-1]) for one in run.series.values()), default=0)
    planned = run.settings.get("trainer.max_steps")
    losses = [one.last for tag, one in run.series.items() if "loss" in tag]
    if not run.status and losses and not all(map(math.isfinite, losses)):
        run.status = "diverged"
    elif not run.status and isinstance(planned, int) and planned > 0:
        # Some loggers count steps from 0.
        run.status = "done" if last_step >= planned - 1 else "unfinished"
    if run.seconds is None:
        times = [one.times for one in run.series.values() if one.times is not None]
        if times:
            run.seconds = float(max(one[-1] for one in times) - min(one[0] for one in times))


def _fingerprint(data_dir: Any) -> str | None:
    """Of the corpus where it was, seen from the working directory, as it is now."""
    try:
        return json.loads((Path(str(data_dir)) / META_FILE).read_text(encoding="utf-8")).get("fingerprint")
    except (OSError, ValueError, AttributeError):
        return None
