"""`lightning-gpt compare`: runs side by side."""

import sys
from pathlib import Path
from typing import Literal


def compare_command(
    runs: list[str],
    filter: list[str] | None = None,
    metrics: list[str] | None = None,
    at: str | None = None,
    x: Literal["step", "tokens", "flops", "time"] = "step",
    against: str | None = None,
    group: bool = False,
    sort: str | None = None,
    format: Literal["table", "md", "csv"] = "table",
    html: str | None = None,
    png: str | None = None,
) -> None:
    """Show the settings in which runs differ beside their metrics, cost and curves.

    Reads runs of this program and of any Lightning program: metrics.jsonl, TensorBoard event files, CSVLogger's
    metrics.csv; settings from config.yaml or hparams.yaml. Names may be cut to their ends: n_layer, loss.

    Args:
        runs: directories, event files or quoted globs, such as runs/shakespeare 'runs/experiments/05*/heads/*/*'.
        filter: only runs that meet this: model.config.n_layer=4, 'val/loss<1.6', status=done. Can be given several
            times.
        metrics: columns. Several words, or given several times. Default: validation and training loss.
        at: where values are taken: tokens=1e6, time=60, common (the largest place on --x that all runs have). Between
            two entries a run's value is interpolated. Default: the end of each run.
        x: axis of curves and of --at. flops: analytic, of training; time: seconds of training without validations.
        against: the run, or with --group the variant, that the others are subtracted from.
        group: runs that differ by seed only become one row: mean with 95% interval, difference to the first row (or
            --against) with interval and p-value.
        sort: metric or setting to sort by, smallest first; --sort=-NAME: largest first.
        format: table, md or csv.
        html: also write a page with table and curves here.
        png: also write a picture of the curves here.
    """
    from lightning_gpt.cli.fast_import import import_lightning

    import_lightning()
    from lightning_gpt.experiments.comparison import compare
    from lightning_gpt.experiments.run_filter import keep
    from lightning_gpt.experiments.run_finder import find_runs
    from lightning_gpt.experiments.run_reader import read_run

    found = [read_run(directory) for directory in find_runs(runs)]
    logged = [run for run in found if run.series or run.status]
    for run in found:
        if not (run.series or run.status):
            reason = f": {'; '.join(run.warnings)}" if run.warnings else ""
            print(f"warning: {run.directory} holds no numbers and is left out{reason}", file=sys.stderr)
    comparison = compare(keep(logged or found, filter or []), metrics or [], at, x, against, group, sort)
    for note in comparison.notes:
        print(f"warning: {note}", file=sys.stderr)

    from lightning_gpt.experiments import comparison_text

    if format == "table" and sys.stdout.isatty():
        comparison_text.show(comparison)
    else:
        as_text = {"table": comparison_text.plain, "md": comparison_text.markdown, "csv": comparison_text.as_csv}
        print(as_text[format](comparison))
    if png:
        from lightning_gpt.experiments.comparison_figure import save_png

        save_png(comparison, Path(png))
        print(f"curves: {png}", file=sys.stderr)
    if html:
        from lightning_gpt.experiments.comparison_page import save_page

        save_page(comparison, Path(html))
        print(f"page: {html}", file=sys.stderr)
