"""A data-parallel step of ours beside one of a bare torch DDP loop: python -m benchmarks.data_parallel.

Two gloo processes on this machine, one thread each, hold the same network, optimizer and batch twice: in a Trainer with
the strategy of configs/trainer/ddp.yaml, and in a loop around DistributedDataParallel. Their steps take turns, with a
barrier before and after each; so do rounds of one process and of two.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.machine import describe_machine, machine_line
from benchmarks.peers.loop import training_step
from benchmarks.peers.ours import random_corpus
from benchmarks.peers.ours_bare import build, mean_loss, model_config
from benchmarks.report import markdown_table, write_json, write_text
from benchmarks.request import SHAPES, Request
from lightning_gpt.cli.fast_import import import_lightning

import_lightning()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from lightning.pytorch import Callback, Trainer, seed_everything  # noqa: E402
from lightning.pytorch.loggers import TensorBoardLogger  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from lightning_gpt import callbacks as ours  # noqa: E402
from lightning_gpt.cli.quiet import quiet_lightning  # noqa: E402
from lightning_gpt.cli.training import TRAINER_DEFAULTS  # noqa: E402
from lightning_gpt.data import TokenData  # noqa: E402
from lightning_gpt.optim import AdamW, Constant  # noqa: E402
from lightning_gpt.parallel.collectives import recorded_collectives  # noqa: E402
from lightning_gpt.parallel.data_parallel import DataParallel  # noqa: E402
from lightning_gpt.tasks import Pretraining  # noqa: E402

WARM_UP = 20
"""Steps before the clock counts; the recorder looks at one of them."""
STAGES = ("Trainer, strategy", "+ metrics, logs, progress, checkpoints, signals")


class Loss(nn.Module):
    """The network's mean loss as a forward pass, which DistributedDataParallel looks at."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.network = build(request)
        self.loss_of = mean_loss(request, self.network)

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Scalar."""
        return self.loss_of(inputs_BT, targets_BT)


def bare_step(request: Request) -> Callable[[], Tensor]:
    """One step of the plain loop, with DDP's own settings but for gradients that live in its buckets, as ours do."""
    loss: nn.Module = Loss(request)
    if dist.is_initialized():
        loss = DistributedDataParallel(loss, gradient_as_bucket_view=True)
    return training_step(request, loss, loss)


class Pairs(Callback):
    """Takes a bare step after each of the Trainer's and times both, from barrier to barrier."""

    def __init__(self, request: Request, path: Path) -> None:
        self.request, self.path = request, path
        self.bare_step: Callable[[], Tensor] | None = None
        self.seconds: list[tuple[float, float]] = []  # Trainer, bare
        self.collectives: list[int] = []
        self.recording = None
        self.last = 0.0

    def now(self) -> float:
        """The time when every process is here."""
        if dist.is_initialized():
            dist.barrier()
        return time.perf_counter()

    def on_train_start(self, trainer, pl_module) -> None:
        """Starts."""
        self.bare_step = bare_step(self.request)
        self.last = self.now()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """The last callback: what the Trainer does after it falls into the next of its steps."""
        if self.recording is not None:
            self.recording[0].__exit__(None, None, None)
            self.collectives, self.recording = [one.bytes for one in self.recording[1]], None
        end = self.now()
        self.bare_step()
        bare_end = self.now()
        self.seconds.append((end - self.last, bare_end - end))
        if batch_idx == WARM_UP // 2 and dist.is_initialized():
            context = recorded_collectives()
            self.recording = context, context.__enter__()
        self.last = self.now()

    def on_train_end(self, trainer, pl_module) -> None:
        """Leaves what it has measured: processes of a group give nothing back."""
        if trainer.is_global_zero:
            write_json(self.path, {"seconds": self.seconds[WARM_UP:], "collectives": self.collectives})


def measured(request: Request, processes: int, stage: int, corpus: Path) -> dict:
    """{"seconds": of each step through the Trainer and of the bare step beside it, "collectives": bytes of each}."""
    shape = request.shape
    with tempfile.TemporaryDirectory(dir=request.workdir) as directory:
        path = Path(directory) / "pairs.json"
        added: list[Callback] = [ours.TrainingMetrics(), ours.Progress(), ours.RandomState()]
        added += [ours.BestCheckpoint(), ours.LastCheckpoint(), ours.GracefulStop()]
        settings = TRAINER_DEFAULTS | {
            "accelerator": "cpu",
            "devices": processes,
            "strategy": DataParallel(start_method="fork") if processes > 1 else "auto",
            "precision": "bf16-mixed" if request.bf16 else "32-true",
            "max_steps": WARM_UP + request.window_steps,
            "limit_val_batches": 0,
            "logger": [ours.JsonlLogger(directory), TensorBoardLogger(directory)] if stage else False,
            "enable_checkpointing": bool(stage),
            "enable_progress_bar": bool(stage),
            "default_root_dir": directory,
            "callbacks": [*(added if stage else []), Pairs(request, path)],
        }
        seed_everything(1337, verbose=False)
        task = Pretraining(model_config(shape), AdamW(lr=1e-3), Constant(), compile=request.compiled)
        Trainer(**settings).fit(task, TokenData(str(corpus), shape.batch_size, shape.block_size))
        return json.loads(path.read_text())


def summary(rounds: list[dict]) -> dict:
    """Medians in milliseconds over the pairs of all rounds: a bare step, and what the Trainer's takes more."""
    pairs = [pair for one in rounds for pair in one["seconds"]]
    bare_ms, more_ms = 1e3 * median(bare for _, bare in pairs), 1e3 * median(ours - bare for ours, bare in pairs)
    return {"pairs": len(pairs), "bare_ms": bare_ms, "more_ms": more_ms, "collectives": rounds[0]["collectives"]}


def report(results: dict) -> str:
    """Markdown."""
    parts = [
        f"# A data-parallel step beside a bare torch DDP loop, {results['setting']}",
        f"`python -m benchmarks.data_parallel --sizes {' '.join(results['sizes'])} --setting {results['setting']} "
        f"--rounds {results['rounds']} --steps {results['steps']}`",
        machine_line(results["machine"]),
        "One and two gloo processes of one thread. A step of the Trainer and a bare step take turns, a barrier between "
        f"them; {results['rounds']} x {results['steps']} of each at S, a tenth at M, rounds of one process and of two "
        "in turn; medians, the difference that of the pairs. Each process has the whole batch: twice the tokens in the "
        "same time would be an efficiency of 100%. What processes share on one machine costs both loops alike.",
    ]
    headings = ["loop", "processes", "ms a step", "bare, ms", "difference, ms", "overhead", "efficiency", "bare loop's"]
    headings += ["ratio"]
    for size, stages in results["sizes"].items():
        table = []
        for name, by_processes in stages.items():
            (bare_1, more_1), (bare_2, more_2) = (
                (by_processes[count]["bare_ms"], by_processes[count]["more_ms"]) for count in ("1", "2")
            )
            for count, bare, more in (("1", bare_1, more_1), ("2", bare_2, more_2)):
                cells = [name, count, f"{bare + more:.2f}", f"{bare:.2f}", f"{more:+.2f}", f"{more / bare:+.1%}"]
                if count == "2":
                    mine, theirs = (bare_1 + more_1) / (bare_2 + more_2), bare_1 / bare_2
                    cells += [f"{mine:.1%}", f"{theirs:.1%}", f"{mine / theirs:.3f}"]
                table.append(cells + [""] * (len(headings) - len(cells)))
        recorded = next(iter(reversed(stages.values())))["2"]["collectives"]
        parts += [
            f"## {SHAPES[size]}",
            markdown_table(headings, table),
            f"A step of two processes issues {len(recorded)} collectives, of "
            f"{', '.join(f'{size_:,}' for size_ in recorded)} bytes; the bare loop only those of the gradients.",
        ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_parallel", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["S", "M"], choices=tuple(SHAPES), help="default: S M")
    parser.add_argument("--setting", default="bf16", choices=("fp32", "bf16"), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=200, help="of a round at S, a tenth at M; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data_parallel"))
    options = parser.parse_args()
    quiet_lightning()
    torch.set_num_threads(1)
    results = {"setting": options.setting, "rounds": options.rounds, "steps": options.steps, "sizes": {}}
    results |= {"machine": describe_machine()}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as workdir:
        for size in options.sizes:
            steps = options.steps if size == "S" else max(options.steps // 10, 1)
            request = Request("ours", size, options.setting, 1, steps, "cpu", None, workdir)
            corpus = random_corpus(request.shape, Path(workdir))
            stages = {name: {"1": [], "2": []} for name in STAGES}
            for _ in range(options.rounds):
                for stage, name in enumerate(STAGES):
                    for processes in (1, 2):
                        stages[name][str(processes)].append(measured(request, processes, stage, corpus))
            results["sizes"][size] = {
                name: {count: summary(rounds) for count, rounds in counts.items()} for name, counts in stages.items()
            }
            write_json(options.out / "results.json", results)  # a later size may take long
            write_text(options.out / "report.md", report(results))
    print(report(results))


if __name__ == "__main__":
    main()
