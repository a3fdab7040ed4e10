"""`lightning-gpt experiment`: many training runs, one report."""

import signal
from pathlib import Path


def run_command(yaml: str, smoke: bool = False, out: str | None = None) -> None:
    """Run a controlled experiment: every variant with every seed, then report.md, figures and results.json.

    Each run is a process of its own under runs/experiments/. Runs that are finished under the same settings are not
    repeated, so a stopped experiment goes on where it was when it is called again.

    Args:
        yaml: the experiment, such as experiments/03_training/warmup.yaml; its paths start at the working directory.
        smoke: only see that every variant works: two steps each with the first seed, no report but under runs/.
        out: directory of the report; by default beside the YAML, named as it.
    """
    from lightning_gpt.experiments import collect_results, load_experiment, run_cells, write_report
    from lightning_gpt.experiments.plan import RUNS, plan_cells
    from lightning_gpt.experiments.results import save_pictures, save_results

    path = Path(yaml)
    experiment = load_experiment(path)
    # As Ctrl-C: the running cell saves, and is resumed by the next call.
    before = signal.signal(signal.SIGTERM, _stop)
    cells = plan_cells(experiment, smoke=smoke)
    directory = Path(out) if out else path.with_suffix("")
    if smoke and not out:
        directory = RUNS / "smoke" / experiment.chapter / experiment.name / "report"
    try:
        run_cells(cells, experiment.metrics[0])
    finally:
        signal.signal(signal.SIGTERM, before)
    results = collect_results(experiment, cells, f"lightning-gpt experiment run {path.as_posix()}")
    save_results(results, directory)
    save_pictures(cells, directory)
    print(write_report(results, directory))


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


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


EXPERIMENTS = {"run": run_command, "report": report_command}
"""Subcommand -> function, in the form that jsonargparse takes."""
