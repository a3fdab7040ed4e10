"""Where a step's time goes beside the network, at size S: python -m benchmarks.overhead.

The same network and optimizer in a bare loop, in a Trainer with nothing, and with our callbacks and loggers added one
after the other, as the command line has them.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.machine import describe_machine, machine_line
from benchmarks.peers.ours import random_corpus
from benchmarks.peers.ours_bare import bare_step, model_config
from benchmarks.report import markdown_table, write_report
from benchmarks.request import SHAPES, Request
from lightning_gpt.cli.fast_import import import_lightning

import_lightning()

from lightning.pytorch import Callback, Trainer, seed_everything  # noqa: E402
from lightning.pytorch.loggers import TensorBoardLogger  # noqa: E402
from torch import Tensor  # noqa: E402

from lightning_gpt import callbacks as ours  # noqa: E402
from lightning_gpt.cli.quiet import quiet_lightning  # noqa: E402
from lightning_gpt.cli.training import TRAINER_DEFAULTS  # noqa: E402
from lightning_gpt.data import TokenData  # noqa: E402
from lightning_gpt.optim import AdamW, Constant  # noqa: E402
from lightning_gpt.tasks import Pretraining  # noqa: E402

WARM_UP = 20
"""Steps before the clock counts; with compilation the first takes a minute."""
STAGES = ("Trainer alone", "+ metrics", "+ metrics.jsonl, TensorBoard", "+ progress", "+ checkpoints, signals")


class Pairs(Callback):
    """Takes a bare step after each of the Trainer's, on a network of its own, and times both.

    Two steps that follow each other share what the host does to them at that moment; two loops a minute apart do not.
    """

    def __init__(self, bare_step: Callable[[], Tensor]) -> None:
        self.bare_step = bare_step
        self.seconds: list[tuple[float, float]] = []  # Trainer, bare
        self.last = 0.0

    def on_train_start(self, trainer, pl_module) -> None:
        """Starts."""
        self.last = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """The last callback: what the Trainer does after it falls into the next of its steps."""
        end = time.perf_counter()
        self.bare_step()
        bare_end = time.perf_counter()
        self.seconds.append((end - self.last, bare_end - end))
        self.last = bare_end


def beside_bare(request: Request, stage: int, corpus: Path) -> list[tuple[float, float]]:
    """Seconds of each step through the Trainer with the first `stage` additions, and of a bare step beside it."""
    shape = request.shape
    with tempfile.TemporaryDirectory(dir=request.workdir) as directory:
        additions: list[list[Callback]] = [
            [ours.TrainingMetrics()],
            [],
            [ours.Progress()],
            [ours.RandomState(), ours.BestCheckpoint(), ours.LastCheckpoint(), ours.GracefulStop()],
        ]
        pairs = Pairs(bare_step(request))
        logging = [ours.JsonlLogger(directory), TensorBoardLogger(directory)] if stage >= 2 else False
        settings = TRAINER_DEFAULTS | {
            "accelerator": "cpu",
            "precision": "bf16-mixed" if request.bf16 else "32-true",
            "max_steps": WARM_UP + request.window_steps,
            "limit_val_batches": 0,
            "logger": logging,
            "enable_checkpointing": stage >= 4,
            "enable_progress_bar": stage >= 3,
            "default_root_dir": directory,
            "callbacks": [*(callback for added in additions[:stage] for callback in added), pairs],
        }
        seed_everything(1337, verbose=False)
        task = Pretraining(model_config(shape), AdamW(lr=1e-3), Constant(), compile=request.compiled)
        Trainer(**settings).fit(task, TokenData(str(corpus), shape.batch_size, shape.block_size))
    return pairs.seconds[WARM_UP:]


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--setting", default="bf16", choices=("fp32", "bf16", "bf16-compiled"))
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=200, help="of a round, default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overhead.json"))
    options = parser.parse_args()
    quiet_lightning()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in STAGES}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as workdir:
        request = Request("ours_bare", "S", options.setting, 1, options.steps, "cpu", None, workdir)
        corpus = random_corpus(request.shape, Path(workdir))
        for _ in range(options.rounds):
            for stage, name in enumerate(STAGES):
                seconds[name] += beside_bare(request, stage, corpus)
    table = []
    for name, pairs in seconds.items():
        ours_, bare = (1e3 * median(column) for column in zip(*pairs))
        difference = 1e3 * median(trainer - bare for trainer, bare in pairs)
        table.append([name, f"{ours_:.2f}", f"{bare:.2f}", f"{difference:+.2f}", f"{bare / (bare + difference):.1%}"])
    # Of each round: the Trainer's median, the bare loop's, the pairs'.
    milliseconds = {
        name: [
            [round(1e3 * median(values), 3) for values in (*zip(*turn), [a - b for a, b in turn])]
            for turn in (pairs[i : i + options.steps] for i in range(0, len(pairs), options.steps))
        ]
        for name, pairs in seconds.items()
    }
    results = {"machine": describe_machine(), "setting": options.setting, "milliseconds": milliseconds}
    headings = ["loop", "ms a step", "bare, ms a step", "difference, ms", "speed of the bare loop's"]
    text = [
        f"# Overhead of a step, {SHAPES['S']}, {options.setting}",
        machine_line(results["machine"]),
        f"A step of the Trainer and a bare step take turns in one process, {options.rounds} x {options.steps} of each; "
        "medians, the difference that of the pairs.",
        markdown_table(headings, table),
    ]
    write_report(options.out, results, "\n\n".join(text))


if __name__ == "__main__":
    main()
