"""What checks ask of a learner's runs and experiments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gpt.learning.exercise import Wrong

if TYPE_CHECKING:
    from lightning_gpt.experiments.run_reader import Run

HOLDS_EQUAL = (".ffn_hidden", ".ffn_multiple")
"""A hidden width may change beside what is compared: it is what holds parameters equal."""


def folder(answer: dict[str, Any], key: str) -> Path:
    """The folder, or file, that an answer names.

    Raises:
        Wrong: nothing is named, or it does not exist.
    """
    given = answer.get(key)
    if not given:
        raise Wrong(f"{key}: not filled in yet")
    path = Path(str(given)).expanduser()
    if not path.exists():
        raise Wrong(f"{key}: {path} does not exist, seen from {Path.cwd()}")
    return path


def opened(answer: dict[str, Any], key: str = "run", finished: bool = True) -> Run:
    """The newest training run at or below the folder that an answer names; what only validated lies beside it.

    Raises:
        Wrong: there is none, or it has not ended well.
    """
    from lightning_gpt.callbacks.run_record import RECORD_FILE
    from lightning_gpt.experiments.run_finder import find_runs
    from lightning_gpt.experiments.run_reader import read_run

    path = folder(answer, key)
    try:
        found = find_runs([str(path)])
        run = read_run(([one for one in found if (one / RECORD_FILE).exists()] or found)[-1])
    except ValueError as error:
        raise Wrong(f"{key}: {error}") from None
    if finished and run.status != "done":
        raise Wrong(f"{key}: {run.directory} is {run.status or 'not known to have ended'}: let it finish")
    return run


def last(run: Run, tag: str) -> float:
    """The final value of a logged number.

    Raises:
        Wrong: it was not logged.
    """
    return float(_series(run, tag)[-1])


def lowest(run: Run, tag: str) -> float:
    """The least value of a logged number."""
    return float(_series(run, tag).min())


def peak_gib(run: Run) -> float:
    """The most memory that a run has held, as `compare` shows it.

    The lines of metrics.jsonl end before the last validation, which may be the fullest moment; run.json does not.

    Raises:
        Wrong: neither tells.
    """
    return run.peak_memory_bytes / 2**30 if run.peak_memory_bytes else last(run, "memory/peak_gib")


def _series(run: Run, tag: str) -> Any:
    if tag not in run.series or not len(run.series[tag].values):
        raise Wrong(f"{run.directory} has not logged {tag}")
    return run.series[tag].values


def steps(run: Run) -> int:
    """Optimizer steps that were logged."""
    return max((int(one.steps[-1]) for one in run.series.values() if len(one.steps)), default=0)


def at_least(run: Run, count: int) -> None:
    """The run has so many steps.

    Raises:
        Wrong: it is shorter.
    """
    if steps(run) < count:
        raise Wrong(f"{run.directory} has {steps(run)} steps, at least {count} are asked for")


def has(run: Run, **settings: Any) -> None:
    """Settings of a run; __ stands for a dot: model__config__n_layer=12.

    Raises:
        Wrong: one is another.
    """
    for name, wanted in settings.items():
        name = name.replace("__", ".")
        given = plain(run.settings.get(name))
        if given != wanted:
            raise Wrong(f"{run.directory} was trained with {name}={given}, asked for is {wanted}")


def plain(value: Any) -> Any:
    """A whole number also where `fit` has kept what was typed: --trainer.devices 2 is '2' in config.yaml."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def processes(run: Run) -> int | None:
    """How many trained; None: the settings leave it to the machine."""
    devices = plain(run.settings.get("trainer.devices"))
    if isinstance(devices, str) and "," in devices:
        devices = devices.strip(",").split(",")
    count = len(devices) if isinstance(devices, list) else devices
    return count * (plain(run.settings.get("trainer.num_nodes")) or 1) if isinstance(count, int) else None


def same_but(first: Run, second: Run, *names: str) -> None:
    """Two runs differ in nothing but these settings (and in what runs are called and where they lie).

    Raises:
        Wrong: something else differs; names it.
    """
    free = (*names, "run", "seed_everything", "trainer.log_every_n_steps", "trainer.default_root_dir", "samples")
    keys = {
        key
        for key in {*first.settings, *second.settings}
        if not any(key == name or key.startswith(f"{name}.") for name in free)
    }
    other = sorted(key for key in keys if plain(first.settings.get(key)) != plain(second.settings.get(key)))
    if other:
        key = other[0]
        values = f"{first.settings.get(key)} and {second.settings.get(key)}"
        raise Wrong(f"the runs differ in {key} too ({values}): change one thing at a time")


def findings(run: Run) -> list[str]:
    """What `diagnose` finds, by name."""
    from lightning_gpt.callbacks.diagnosis import read_diagnosis
    from lightning_gpt.callbacks.diagnosis_rules import diagnose
    from lightning_gpt.callbacks.diagnosis_signals import Facts, Series, Signals

    series = {name: Series(one.steps, one.values) for name, one in run.series.items() if name != "epoch"}
    facts = Facts.of(read_diagnosis(run.directory).get("facts"))
    facts.max_steps = facts.max_steps or run.settings.get("trainer.max_steps")
    return [finding.rule for finding in diagnose(Signals(series, facts)).findings]


def healthy(run: Run) -> None:
    """`diagnose` finds nothing.

    Raises:
        Wrong: it does.
    """
    found = findings(run)
    if found:
        raise Wrong(f"{run.directory} is not healthy: lightning-gpt diagnose {run.directory} says {', '.join(found)}")


class Study:
    """The results of an experiment."""

    def __init__(self, answer: dict[str, Any], key: str = "experiment") -> None:
        import json

        path = folder(answer, key)
        file = path if path.is_file() else path / "results.json"
        try:
            self.content = json.loads(file.read_text(encoding="utf-8"))
            cells = self.content["cells"]
        except (OSError, ValueError, KeyError, TypeError):
            raise Wrong(
                f"{key}: {path} holds no results.json of `lightning-gpt experiment run`: name the folder that it made"
            ) from None
        self.metric = (self.content.get("metrics") or ["val/loss"])[0]
        self.values: dict[str, dict[int, float]] = {}
        """variant -> seed -> final metric, of the cells that finished."""
        for cell in cells:
            value = (cell.get("final") or {}).get(self.metric)
            if cell.get("status") == "done" and value is not None:
                self.values.setdefault(cell["variant"], {})[cell["seed"]] = float(value)

    def needs(self, variants: int, seeds: int) -> None:
        """So many variants with so many seeds each.

        Raises:
            Wrong: there are fewer.
        """
        enough = [name for name, values in self.values.items() if len(values) >= seeds]
        if len(enough) < variants:
            counts = ", ".join(f"{name}: {len(values)}" for name, values in self.values.items()) or "none"
            raise Wrong(f"{variants} variants with {seeds} finished seeds each are asked for; there are {counts}")

    def has(self, *variants: str) -> None:
        """Variants of these names.

        Raises:
            Wrong: one is missing.
        """
        missing = [name for name in variants if name not in self.values]
        if missing:
            raise Wrong(f"there is no finished variant {missing[0]!r} among {', '.join(self.values) or 'none'}")

    def differences(self, variant: str, reference: str) -> list[float]:
        """Of seeds that both finished."""
        ours, theirs = self.values[variant], self.values[reference]
        return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]

    def best(self) -> str:
        """The variant of the lowest mean."""
        return min(self.values, key=lambda name: sum(self.values[name].values()) / len(self.values[name]))


def content(answer: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    """A JSON file that a command left.

    Args:
        answer: values of the learner's YAML.
        key: that names the file, or the folder that holds it.
        name: of the file in that folder.

    Raises:
        Wrong: it is missing or damaged.
    """
    import json

    path = folder(answer, key)
    path = path if path.is_file() else path / name
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Wrong(f"{key}: {path} is missing, or no JSON") from None
    if not isinstance(found, dict):
        raise Wrong(f"{key}: {path} is no {name}")
    return found


def own_study(answer: dict[str, Any]) -> str:
    """An experiment of one's own: one change, equal parameters, five seeds, an expectation.

    Raises:
        Wrong: one of these is missing.
    """
    study = Study(answer)
    if len(str(study.content.get("expectation") or "").split()) < 5:
        raise Wrong("the experiment has no expectation: write one before it runs")
    if (study.content.get("equal") or {}).get("parameters") is None:
        raise Wrong("the experiment does not hold parameters equal: equal: {parameters: 0.01}")
    study.needs(2, 5)
    changes = max(
        len(settings) - sum(name.endswith(HOLDS_EQUAL) for name in settings)
        for settings in study.content["variants"].values()
    )
    if changes > 1:
        raise Wrong(f"a variant changes {changes} settings: change one thing at a time")
    return f"{len(study.values)} variants; lowest {study.metric}: {study.best()}"
