"""`lightning-gpt experiment lr_range`: which learning rates a task bears."""

from pathlib import Path


def lr_range_command(
    fit: list[str] | None = None,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    out: str = "runs/lr_range",
) -> None:
    """Sweep the learning rate upwards over one short run and read off where to train (Smith, 2017).

    The task's own data, optimizer, clipping and precision; only the schedule gives way to the sweep. All parameter
    groups keep their proportions: the rates are those of the first group. Nothing of the model is kept. The suggestion
    is the rate at which the loss falls fastest; where the loss is lowest, the rate is as high as it may be.

    Args:
        fit: what `lightning-gpt fit` takes, written as there: -c files and dotted settings such as --data.batch_size 4.
        low: first learning rate.
        high: last learning rate; the sweep ends before it when the loss has diverged.
        steps: optimizer steps from one to the other.
        out: directory of lr_range.png and lr_range.json.
    """
    import contextlib
    import json
    import os
    import tempfile

    from lightning_gpt.callbacks.jsonl_logger import read_metrics
    from lightning_gpt.callbacks.measurement import Finished
    from lightning_gpt.cli.measured_run import measured_settings
    from lightning_gpt.cli.parsing import with_files
    from lightning_gpt.cli.training import run_training
    from lightning_gpt.experiments.machine import hardware, versions
    from lightning_gpt.experiments.range_figure import FIGURE_FILE, draw_range
    from lightning_gpt.optim.rate_range import read_range, sweep_rates
    from lightning_gpt.tasks import NonFiniteError

    fit = with_files(fit)
    rates = sweep_rates(low, high, steps)
    with tempfile.TemporaryDirectory() as place:
        callback = {
            "class_path": "lightning_gpt.callbacks.measurement.RateSweep",
            "init_args": {"low": low, "high": high, "steps": steps},
        }
        settings = measured_settings(Path(place), steps, callback)
        constant = {"class_path": "lightning_gpt.optim.Constant", "init_args": {"warmup_steps": 0}}
        settings["model"] = {"init_args": {"schedule": constant}}
        stacked = Path(place) / "sweep.yaml"
        stacked.write_text(json.dumps(settings))
        with contextlib.suppress(Finished, NonFiniteError):
            run_training("fit", [*fit, "-c", str(stacked)])
        rows = read_metrics(next(Path(place).glob("*/version_0/metrics.jsonl"), os.devnull))
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    if not losses:
        raise ValueError(f"the loss was not finite at low={low:g}: begin at a lower rate, or look at the data")
    test = read_range(rates, losses, rates[len(losses)] if len(losses) < steps else None)
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    command = f"lightning-gpt experiment lr_range {' '.join(fit)} --low {low:g} --high {high:g} --steps {steps}"
    content = {
        "command": command,
        "steepest": test.steepest,
        "lowest": test.lowest,
        "diverged": test.diverged,
        "rates": [float(f"{rate:.6g}") for rate in rates[: len(losses)]],
        "losses": [round(loss, 6) for loss in losses],
        "smooth": [round(loss, 6) for loss in test.smooth],
        "hardware": hardware(),
        "versions": versions(),
    }
    temporary = directory / ".lr_range.json"
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(directory / "lr_range.json")
    draw_range(test, directory / FIGURE_FILE)
    end = "it does not diverge" if test.diverged is None else f"it diverges at {test.diverged:.2g}"
    print(f"suggested learning rate: {test.steepest:.2g}, where the loss falls fastest")
    print(f"at most {test.lowest:.2g}, where it is lowest; {end}")
    print(directory / FIGURE_FILE)
