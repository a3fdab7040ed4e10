"""`lightning-gpt experiment`: many training runs or measurements, one report."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_gpt.cli.batch_size import batch_size_command
from lightning_gpt.cli.lr_range import lr_range_command
from lightning_gpt.cli.search import search_command


def run_command(
    yaml: str,
    smoke: bool = False,
    out: str | None = None,
    parallel: int = 1,
    engine: str = "local",
    engine_options: dict[str, Any] | None = None,
) -> None:
    """Run a controlled experiment: every variant with every seed, then report.md, figures and results.json.

    Each run is a process of its own under runs/experiments/. Runs that are finished under the same settings are not
    repeated, and one that was stopped goes on from its last checkpoint, so an experiment that was killed goes on where
    it was when it is called again. With a budget in seconds, short runs before the others measure what a step of each
    variant takes here and so fix how many it gets.

    Args:
        yaml: the experiment, such as experiments/03_training/warmup.yaml; its paths start at the working directory.
        smoke: only see that every variant works: two steps each with the first seed, in this process; no report but
            under runs/.
        out: directory of the report; by default beside the YAML, named as it.
        parallel: runs at a time; those of this machine share its cores.
        engine: local, ray or slurm.
        engine_options: of ray: address, cpus, gpus; of slurm: submitit's parameters, such as
            '{slurm_partition: gpu, timeout_min: 60, gpus_per_node: 1}', and cluster: local to try without SLURM.
    """
    from lightning_gpt.experiments import collect_results, load_experiment, run_cells, write_report
    from lightning_gpt.experiments.engines import InlineEngine, choose_engine
    from lightning_gpt.experiments.plan import RUNS, plan_cells
    from lightning_gpt.experiments.results import save_board, save_pictures, save_results
    from lightning_gpt.experiments.wall_time import check_where

    path = Path(yaml)
    experiment = load_experiment(path)
    where = choose_engine(engine, parallel, engine_options or {})
    check_where(experiment, engine, parallel)
    if smoke:
        where = InlineEngine(_fit)
    # As Ctrl-C: the running cells save, and are resumed by the next call.
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        cells = plan_cells(experiment, smoke=smoke, check=_check)
        run_cells(cells, experiment.metrics[0], where)
    finally:
        signal.signal(signal.SIGTERM, before)
    directory = Path(out) if out else path.with_suffix("")
    if smoke and not out:
        directory = RUNS / "smoke" / experiment.chapter / experiment.name / "report"
    results = collect_results(experiment, cells, f"lightning-gpt experiment run {path.as_posix()}")
    save_results(results, directory)
    save_pictures(cells, directory)
    board = save_board(experiment, cells, results)
    print(f"side by side: tensorboard --logdir {board}", file=sys.stderr)
    print(write_report(results, directory))


def _fit(arguments: list[str]) -> None:
    if arguments[0] == "experiment":
        EXPERIMENTS[arguments[1]](*arguments[2:])
        return
    from lightning_gpt.cli.training import run_training

    run_training(arguments[0], arguments[1:])


def _check(configs: Sequence[Path], settings: dict[str, Any]) -> None:
    import tempfile

    import yaml

    from lightning_gpt.cli.settings_check import parsed_settings

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(settings, file)
        file.flush()
        parsed_settings(configs, file.name)


def report_command(yaml: str, out: str | None = None) -> None:
    """Write report.md and figures again from results.json, run nothing.

    Args:
        yaml: the experiment.
        out: directory of results.json and of the report; by default beside the YAML, named as it.
    """
    from lightning_gpt.experiments import write_report
    from lightning_gpt.experiments.results import load_results

    directory = Path(out) if out else Path(yaml).with_suffix("")
    print(write_report(load_results(directory), directory))


def measure_command(cell: str) -> None:
    """Measure one cell of an experiment again, as `run` does for each.

    Args:
        cell: config.yaml in its directory below runs/experiments; its metrics.jsonl is replaced.
    """
    from lightning_gpt.experiments.measurement import run_measurement

    for row in run_measurement(Path(cell)):
        print("  ".join(f"{name} {value:.6g}" for name, value in row.items()))


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


EXPERIMENTS = {
    "run": run_command,
    "report": report_command,
    "measure": measure_command,
    "search": search_command,
    "lr_range": lr_range_command,
    "batch_size": batch_size_command,
}
"""Subcommand -> function, in the form that jsonargparse takes."""
