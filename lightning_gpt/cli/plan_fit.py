"""`lightning-gpt plan fit`: the scaling law of one's own runs."""

from pathlib import Path
from typing import Literal


def plan_fit(
    runs: list[str],
    metric: str = "val/loss",
    count: Literal["all", "body"] = "all",
    flops: Literal["analytic", "6nd"] = "analytic",
    hold_out: str | None = None,
    predict: str | None = None,
    resamples: int = 500,
    seed: int = 0,
    out: str | None = None,
) -> None:
    """Fit L(N, D) = E + A / N^alpha + B / D^beta to training runs; writes fit.json, fit.md and fit.png.

    The runs need at least three sizes and three token counts, on the same data. `lightning-gpt plan scaling --law
    fit.json` then plans with the law.

    Args:
        runs: results.json files of experiments, directories that hold one, run directories, directories of these.
        metric: the loss, by its name in the logs.
        count: parameters with embeddings (all) or without (body).
        flops: of training, as the runs count them, or 6ND.
        hold_out: pattern of variants, such as 'd8w256-*', that are left out of the fit and predicted.
        predict: parameters and tokens, such as 1e7,2e8, of a run that is to be predicted.
        resamples: of the bootstrap that makes the intervals.
        seed: of the bootstrap.
        out: directory for the files; by default that of the first results.json, else scaling_fit.
    """
    said = {**locals()}
    import numpy as np

    from lightning_gpt.cli.command_line import command_line
    from lightning_gpt.planning.fit_figure import draw_fit
    from lightning_gpt.planning.fit_file import fit_content, save_fit
    from lightning_gpt.planning.fit_report import (
        constants_table,
        isoflop_lines,
        power_law_lines,
        predictions_table,
        write_report,
    )
    from lightning_gpt.planning.runs import read_runs, split_runs
    from lightning_gpt.planning.scaling_fit import fit_runs

    if resamples < 20:
        raise ValueError(f"resamples={resamples} are too few for 95% intervals: use at least 20 (several hundred)")
    points = [parse_point(predict)] if predict else []
    found, warnings = read_runs(runs, metric)
    kept, held = split_runs(found, hold_out)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # such runs are warned of in words
        fit = fit_runs(kept, held, points, count, flops == "analytic", resamples, seed, warnings, _progress(resamples))
        directory = Path(out) if out else place(runs[0])
        directory.mkdir(parents=True, exist_ok=True)
        command = command_line("plan fit", plan_fit, said)
        for text in fit.warnings:
            print(f"warning: {text}")
        print(f"{len(fit.runs)} runs, {fit.law.source}, N counts {count} parameters\n\n{constants_table(fit)}")
        if fit.predictions:
            print(f"\n{predictions_table(fit)}")
        print(f"\n{isoflop_lines(fit)}\n\n{power_law_lines(fit)}\n")
        figure = draw_fit(fit, directory / "fit.png")
        for path in (
            save_fit(fit_content(fit, command, metric), directory / "fit.json"),
            figure,
            write_report(fit, command, metric, figure.name, directory / "fit.md"),
        ):
            print(path)


def parse_point(text: str) -> tuple[float, float]:
    """ "1e7,2e8" -> (1e7, 2e8).

    Raises:
        ValueError: not two positive numbers.
    """
    try:
        size, tokens = map(float, text.split(","))
    except ValueError:
        size = tokens = 0.0
    if not (0 < size < float("inf") and 0 < tokens < float("inf")):
        raise ValueError(f"predict={text} must be parameters and tokens, two positive numbers such as 1e7,2e8")
    return size, tokens


def place(run: str) -> Path:
    """Where the files go by default."""
    path = Path(run)
    if path.is_file():
        return path.parent
    return path if (path / "results.json").is_file() else Path("scaling_fit")


def _progress(total: int):
    """Prints a plain line at every quarter, on stderr."""
    import sys

    def report(done: int) -> None:
        if done % max(1, total // 4) == 0:
            print(f"resampled fits: {done} of {total}", file=sys.stderr, flush=True)

    return report
