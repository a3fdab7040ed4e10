"""Where a step's time goes beside the network, at size S: python -m benchmarks.overhead.

The same module and settings in a bare loop, in a Trainer with nothing, and with our callbacks and loggers added one
after the other, as the command line has them; in turns, in one process.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.machine import describe_machine, machine_line
from benchmarks.measure import contestant
from benchmarks.peers.ours import random_corpus
from benchmarks.peers.ours_bare import model_config
from benchmarks.report import markdown_table, write_report
from benchmarks.request import SHAPES, Request
from lightning_gpt.cli.allocator import keep_freed_memory
from lightning_gpt.cli.fast_import import import_lightning

import_lightning()

from lightning.pytorch import Callback, Trainer, seed_everything  # noqa: E402
from lightning.pytorch.loggers import TensorBoardLogger  # noqa: E402

from lightning_gpt import callbacks as ours  # noqa: E402
from lightning_gpt.cli.quiet import quiet_lightning  # noqa: E402
from lightning_gpt.cli.training import TRAINER_DEFAULTS  # noqa: E402
from lightning_gpt.data import TokenData  # noqa: E402
from lightning_gpt.optim import AdamW, Constant  # noqa: E402
from lightning_gpt.tasks import Pretraining  # noqa: E402

STAGES = ("Trainer alone", "+ metrics", "+ metrics.jsonl, TensorBoard", "+ progress", "+ checkpoints, signals")


class WindowClock(Callback):
    """Tokens/s of each window of steps."""

    def __init__(self, steps: int, tokens: int) -> None:
        self.steps, self.tokens = steps, tokens
        self.rates: list[float] = []

    def on_train_start(self, trainer, pl_module) -> None:
        """Starts."""
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Takes the time at the end of a window."""
        if (batch_idx + 1) % self.steps == 0:
            now = time.perf_counter()
            self.rates.append(self.tokens * self.steps / (now - self.start))
            self.start = now


def through_trainer(request: Request, stage: int, corpus: Path) -> float:
    """Median tokens/s with the first `stage` additions."""
    shape = request.shape
    with tempfile.TemporaryDirectory(dir=request.workdir) as directory:
        additions: list[list[Callback]] = [
            [ours.TrainingMetrics()],
            [],
            [ours.Progress()],
            [ours.RandomState(), ours.BestCheckpoint(), ours.LastCheckpoint(), ours.GracefulStop()],
        ]
        clock = WindowClock(request.window_steps, shape.tokens)
        logging = [ours.JsonlLogger(directory), TensorBoardLogger(directory)] if stage >= 2 else False
        settings = TRAINER_DEFAULTS | {
            "accelerator": "cpu",
            "precision": "bf16-mixed" if request.bf16 else "32-true",
            "max_steps": (1 + request.windows) * request.window_steps,
            "log_every_n_steps": min(10, request.window_steps),
            "limit_val_batches": 0,
            "logger": logging,
            "enable_checkpointing": stage >= 4,
            "enable_progress_bar": stage >= 3,
            "default_root_dir": directory,
            "callbacks": [clock, *(callback for added in additions[:stage] for callback in added)],
        }
        seed_everything(1337, verbose=False)
        task = Pretraining(model_config(shape), AdamW(lr=1e-3), Constant(), compile=request.compiled)
        Trainer(**settings).fit(task, TokenData(str(corpus), shape.batch_size, shape.block_size))
    return median(clock.rates[1:])


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--setting", default="bf16", choices=("fp32", "bf16", "bf16-compiled"))
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--windows", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=SHAPES["S"].window_steps, help="of a window, default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overhead.json"))
    options = parser.parse_args()
    keep_freed_memory()
    quiet_lightning()
    rates: dict[str, list[float]] = {name: [] for name in ("bare loop", *STAGES)}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as workdir:
        request = Request("ours_bare", "S", options.setting, options.windows, options.steps, "cpu", None, workdir)
        corpus = random_corpus(request.shape, Path(workdir))
        for _ in range(options.rounds):
            rates["bare loop"].append(median(contestant("ours_bare").measure(request)))
            for stage, name in enumerate(STAGES):
                rates[name].append(through_trainer(request, stage, corpus))
    tokens, bare = SHAPES["S"].tokens, median(rates["bare loop"])
    table = []
    for name, each in rates.items():
        rate = median(each)
        milliseconds = 1e3 * (tokens / rate - tokens / bare)
        table.append([name, f"{rate:,.0f}", f"{1e3 * tokens / rate:.2f}", f"{milliseconds:+.2f}", f"{rate / bare:.1%}"])
    results = {"machine": describe_machine(), "setting": options.setting, "tokens_per_second": rates}
    headings = ["loop", "tokens/s", "ms a step", "over bare, ms", "of bare"]
    text = [
        f"# Overhead of a step, {SHAPES['S']}, {options.setting}",
        machine_line(results["machine"]),
        f"Medians of {options.rounds} turns.",
        markdown_table(headings, table),
    ]
    write_report(options.out, results, "\n\n".join(text))


if __name__ == "__main__":
    main()
