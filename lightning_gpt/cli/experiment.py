"""`lightning-gpt experiment`: many training runs, one report."""

import signal
from pathlib import Path


def experiment_command(yaml: str, smoke: bool = False, report_only: bool = False, out: str | None = None) -> None:
    """Run a controlled experiment: every variant with every seed, then report.md, curves.png and results.json.

    Each run is a process of its own under runs/experiments/. Runs that are finished under the same settings are not
    repeated, so a stopped experiment goes on where it was when it is called again.

    Args:
        yaml: the experiment, such as experiments/03_training/warmup.yaml; its paths start at the working directory.
        smoke: only see that every variant works: two steps each with the first seed, no report but under runs/.
        report_only: rewrite report.md and curves.png from results.json, run nothing.
        out: directory of the report; by default beside the YAML, named as it.
    """
    from lightning_gpt.experiments import collect_results, load_experiment, run_cells, write_report
    from lightning_gpt.experiments.plan import RUNS, plan_cells
    from lightning_gpt.experiments.results import load_results, save_pictures, save_results

    path = Path(yaml)
    directory = Path(out) if out else path.with_suffix("")
    if report_only:
        print(write_report(load_results(directory), directory))
        return
    experiment = load_experiment(path)
    # As Ctrl-C: the running cell saves, and is resumed by the next call.
    before = signal.signal(signal.SIGTERM, _stop)
    cells = plan_cells(experiment, smoke=smoke)
    if smoke and not out:
        directory = RUNS / "smoke" / experiment.chapter / experiment.name / "report"
    try:
        run_cells(cells, experiment.metrics[0])
    finally:
        signal.signal(signal.SIGTERM, before)
    results = collect_results(experiment, cells, f"lightning-gpt experiment {path.as_posix()}")
    save_results(results, directory)
    save_pictures(cells, directory)
    print(write_report(results, directory))


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
