"""`lightning-gpt experiment batch_size`: the micro-batch that fits, and the one to take."""

import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

SHARE = 0.8
"""Of the memory that is free, which is taken where nothing is said."""
POLL_SECONDS = 0.02
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
"""What torch and the system say when there is none left."""

NOISE_STEPS = 8
"""The fewest that tell anything."""
QUARTERS = 4
HOW_NOISE_IS_READ = (
    "Windows at which a step is half signal, half noise (B_simple, McCandlish et al., 2018, appendix A.1), from the "
    "norms of micro-batches and of their mean, in each quarter of the run; ± is the standard error over steps. It is "
    "an order of magnitude: far below it twice the batch is worth twice the steps, far above it it is wasted."
)


def batch_size_command(
    fit: list[str] | None = None,
    memory: str | None = None,
    most: int = 4096,
    slowest: float = 10.0,
    steps: int = 3,
    noise: int = 0,
    out: str = "runs/batch_size",
) -> None:
    """Find the largest micro-batch that fits, the speed of each size, and the smallest within 5% of the best speed.

    Each size is a process of its own that trains a few whole optimizer steps: 1, 2, 4, ... windows, then the sizes
    between the last that fits and the first that does not. On a GPU that is found by trying. On a CPU nothing is tried
    that by the growth so far would need more than the limit, and a process that passes it is ended at once.

    Args:
        fit: what `lightning-gpt fit` takes, written as there: -c files and dotted settings.
        memory: limit of the memory of one training process on a CPU, such as 8GiB; null: 80% of what is free.
        most: windows tried at most.
        slowest: seconds of an optimizer step, beyond which no larger batch is tried.
        steps: optimizer steps that are timed, after two that are not.
        noise: optimizer steps of one more run, which measures the gradient noise scale: the batch beyond which a larger
            one is wasted (McCandlish et al., 2018); 0: none. It grows as the loss falls, so give a few hundred.
        out: directory of batch_size.md, batch_size.png and batch_size.json.
    """
    from lightning_gpt.cli.settings_check import parsed_arguments
    from lightning_gpt.experiments.batch_size import (
        FIGURE_FILE,
        draw_sizes,
        find_sizes,
        measured_at,
        recommended,
        sizes_table,
        split,
    )
    from lightning_gpt.experiments.machine import hardware, versions
    from lightning_gpt.experiments.tables import markdown
    from lightning_gpt.parallel.memory_size import parse_memory
    from lightning_gpt.planning.memory_budget import free_memory

    if noise and not noise >= NOISE_STEPS:
        raise ValueError(f"noise={noise} must be 0 or at least {NOISE_STEPS} optimizer steps")
    for name, value in (("most", most), ("slowest", slowest), ("steps", steps)):
        if value <= 0:
            raise ValueError(f"{name}={value} must be positive")
    settings = parsed_arguments(fit)
    block_size = settings["data.init_args.block_size"]
    windows = settings["data.init_args.batch_size"] * (settings["trainer.accumulate_grad_batches"] or 1)
    limit = parse_memory(memory) if memory else None if _on_gpu(settings) else int(SHARE * free_memory())
    tried = _Trial(fit, block_size, limit, steps)
    sizes = measured_at(find_sizes(tried, limit, most, slowest), windows, tried)

    best, kept = recommended(sizes.measured), split(windows, sizes.measured)
    heading = ["micro-batch", "tokens/s", "seconds a step", "peak GiB", f"accumulation for {windows} windows"]
    about = " (foretold from the growth, not tried)" if sizes.foretold else ""
    lines = [
        f"Largest micro-batch that fits: {sizes.largest} windows{about}. {sizes.end[:1].upper()}{sizes.end[1:]}.",
        f"Smallest within 5% of the best speed: {best.size} windows ({best.tokens_per_second:,.0f} tokens/s).",
    ]
    if kept is not None:
        lines.append(
            f"For the {windows} windows a step that the configuration has, on each device: --data.batch_size "
            f"{kept[0].size} --trainer.accumulate_grad_batches {kept[1]}"
        )
    noises = _noise_scales(fit, windows, sizes.largest, noise) if noise else []
    if noises:
        lines.append(_noise_in_words(noises[-1], windows, block_size))
    command = f"lightning-gpt experiment batch_size {' '.join(fit)}" + (f" --memory {memory}" if memory else "")
    command += f" --most {most} --slowest {slowest:g} --steps {steps}" + (f" --noise {noise}" if noise else "")
    machine = hardware()
    device = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['cores']} core(s)"
    allowed = f"; limit {limit / 2**30:.2f} GiB" if limit else ""
    table = markdown(heading, [[str(one) for one in row] for row in sizes_table(sizes, windows)])
    text = "\n\n".join(
        [
            "# Micro-batches: memory and speed",
            f"```\n{command}\n```",
            *lines,
            table,
            f"{block_size} tokens a window{allowed}. {device}; {', '.join(' '.join(v) for v in versions().items())}.",
            f"![Speed and memory]({FIGURE_FILE})",
            *(["## Gradient noise scale", _noise_table(noises, markdown), HOW_NOISE_IS_READ] if noises else []),
        ]
    )
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "command": command,
        "limit": limit,
        "block_size": block_size,
        "largest": sizes.largest,
        "foretold": sizes.foretold,
        "end": sizes.end,
        "recommended": best.size,
        "measured": [vars(one) for one in sizes.measured],
        "noise": [{"from_step": begin, "to_step": end, **vars(one)} for begin, end, one in noises],
        "hardware": machine,
        "versions": versions(),
    }
    for name, written in (("batch_size.md", text + "\n"), ("batch_size.json", json.dumps(content, indent=1) + "\n")):
        temporary = directory / f".{name}"
        temporary.write_text(written, encoding="utf-8")
        temporary.replace(directory / name)
    draw_sizes(sizes, limit, directory / FIGURE_FILE)
    print("\n".join(lines))
    print(directory / "batch_size.md")


def _noise_scales(fit: list[str], windows: int, largest: int, steps: int) -> list[Any]:
    """(first step, last step, NoiseScale in windows) of each quarter of a run of so many steps."""
    from lightning_gpt.cli.measured_run import measured_settings
    from lightning_gpt.optim.noise_scale import noise_scale

    size = next((one for one in range(windows // 4, 1, -1) if windows % one == 0 and one <= largest), 1)
    if windows == size:
        raise ValueError("noise: a step of one window has no parts to compare: raise data.batch_size")
    print(f"measuring the gradient noise scale: {steps} steps of {windows // size} x {size} windows", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        path = place / "norms.json"
        callback = {
            "class_path": "lightning_gpt.callbacks.gradient_norms.GradientNorms",
            "init_args": {"path": str(path), "steps": steps},
        }
        settings = measured_settings(place, steps, callback)
        settings["trainer"]["accumulate_grad_batches"] = windows // size
        settings["data"] = {"init_args": {"batch_size": size}}
        (place / "noise.yaml").write_text(json.dumps(settings))
        command = [sys.executable, "-m", "lightning_gpt", "fit", *fit, "-c", str(place / "noise.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if not path.exists():
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise RuntimeError(f"the run for the noise scale failed: {last[0].removeprefix('lightning-gpt: error: ')}")
        norms = json.loads(path.read_text())
    ends = [steps * quarter // QUARTERS for quarter in range(QUARTERS + 1)]
    return [
        (begin + 1, end, noise_scale(size, windows, norms["small"][begin:end], norms["large"][begin:end]))
        for begin, end in pairwise(ends)
    ]


def _noise_in_words(last: Any, windows: int, block_size: int) -> str:
    import math

    begin, end, found = last
    if not math.isfinite(found.scale):
        return f"Gradient noise scale, steps {begin} to {end}: beyond what {windows} windows a step can tell."
    told = f"{found.scale:,.3g} ± {found.error:.2g} windows ({found.scale * block_size:,.3g} tokens)"
    share = found.scale / windows
    return f"Gradient noise scale, steps {begin} to {end}: {told}, {share:.2g} times the configuration's step."


def _noise_table(noises: list[Any], markdown: Any) -> str:
    rows = [
        [f"{begin} to {end}", f"{one.scale:,.3g} ± {one.error:.2g}", f"{one.signal:.3g}", f"{one.noise:.3g}"]
        for begin, end, one in noises
    ]
    return markdown(["steps", "noise scale, windows", "signal, squared norm", "noise of one window"], rows)


class _Trial:
    """Measures one size in a process of its own."""

    def __init__(self, fit: list[str], block_size: int, limit: int | None, steps: int) -> None:
        self.fit, self.block_size, self.limit, self.steps = fit, block_size, limit, steps

    def __call__(self, size: int) -> Any:
        """What it costs; None: it does not fit.

        Raises:
            RuntimeError: it failed for another reason.
        """
        from statistics import median

        from lightning_gpt.cli.measured_run import measured_settings
        from lightning_gpt.experiments.batch_size import Measured

        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            callback = {
                "class_path": "lightning_gpt.callbacks.measurement.StepCost",
                "init_args": {"path": str(place / "cost.json"), "steps": self.steps},
            }
            settings = measured_settings(place, 2 + self.steps, callback)
            settings["trainer"]["accumulate_grad_batches"] = 1
            settings["data"] = {"init_args": {"batch_size": size}}
            (place / "size.yaml").write_text(json.dumps(settings))
            with open(place / "fit.log", "wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "lightning_gpt", "fit", *self.fit, "-c", str(place / "size.yaml")],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                )
            fits = self._watched(process, place / "cost.json")
            told = (place / "fit.log").read_text(encoding="utf-8", errors="replace")
            refused = not (place / "cost.json").exists() and any(one in told.lower() for one in NO_MEMORY)
            if not fits or refused:
                print(f"{size:>6} windows: do not fit", file=sys.stderr, flush=True)
                return None
            if not (place / "cost.json").exists():
                last = told.strip().splitlines()[-1:] or ["no message"]
                message = last[0].removeprefix("lightning-gpt: error: ")
                raise RuntimeError(f"a run of {size} windows failed with status {process.returncode}: {message}")
            cost = json.loads((place / "cost.json").read_text())
        seconds = median(cost["seconds"])
        one = Measured(size, size * self.block_size / seconds, seconds, cost["peak_bytes"])
        print(
            f"{size:>6} windows: {one.tokens_per_second:>9,.0f} tokens/s  {one.peak_bytes / 2**30:6.2f} GiB",
            file=sys.stderr,
            flush=True,
        )
        return one

    def _watched(self, process: subprocess.Popen, cost: Path) -> bool:
        """Waits for the result or the end; False: the process passed the limit. It is ended as soon as all is known:
        what Lightning does afterwards takes time, and memory that is none of the batch's."""
        import psutil

        fits = True
        try:
            watched = psutil.Process(process.pid)
            while process.poll() is None and not cost.exists():
                fits = not self.limit or watched.memory_info().rss <= self.limit
                if not fits:
                    break
                time.sleep(POLL_SECONDS)
        except psutil.NoSuchProcess:
            pass
        finally:
            process.kill()
            process.wait()
        return fits


def _on_gpu(settings: Any) -> bool:
    import torch

    return settings["trainer.accelerator"] in ("gpu", "cuda", "auto") and torch.cuda.is_available()
