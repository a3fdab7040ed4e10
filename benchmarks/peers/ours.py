"""Ours as a user runs it: `lightning-gpt fit` in its own process, with its loggers, callbacks and data.

The rates are those that the run itself logs, one a window: the window holds the steps, the loading of their batches
from a memory-mapped corpus, and the logging.
"""

import random
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.peers.ours_bare import model_fields
from benchmarks.request import Request, Shape

CLI = [sys.executable, "-c", "from lightning_gpt.cli import main; main()"]
FIRST_CHARACTER = 0x20000  # a long run of code points, so that a character corpus can have 50,304 different ones


def missing(nanogpt: str | None) -> str | None:
    """Never."""
    return None


def random_corpus(shape: Shape, workdir: Path) -> Path:
    """A prepared corpus of random characters, as many different ones as the vocabulary has; made once."""
    directory = workdir / f"corpus_{shape.vocab_size}"
    if not directory.exists():
        draw = random.Random(0)
        vocabulary = [chr(FIRST_CHARACTER + index) for index in range(shape.vocab_size)]
        text = workdir / f"corpus_{shape.vocab_size}.txt"
        text.write_text("".join(vocabulary + draw.choices(vocabulary, k=500_000)), encoding="utf-8")
        run([*CLI, "prepare", str(text), "--tokenizer", "char", "--out", str(directory)])
    return directory


def run(command: list[str]) -> None:
    """Runs it quietly.

    Raises:
        RuntimeError: it failed; with its last line.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit status {done.returncode}")


def run_config(request: Request, corpus: Path, runs: Path) -> dict:
    """The YAML of the run."""
    shape = request.shape
    return {
        "run": {"name": "benchmark", "dir": str(runs)},
        "model": {
            "class_path": "lightning_gpt.tasks.Pretraining",
            "init_args": {
                "config": model_fields(shape),
                "optimizer": {"class_path": "lightning_gpt.optim.AdamW", "init_args": {"lr": 1e-3}},
                "schedule": {"class_path": "lightning_gpt.optim.Constant"},
                "compile": request.compiled,
            },
        },
        "data": {
            "class_path": "lightning_gpt.data.TokenData",
            "init_args": {
                "data_dir": str(corpus),
                "batch_size": shape.batch_size,
                "block_size": shape.block_size,
            },
        },
        "trainer": {
            "accelerator": "gpu" if request.device == "cuda" else "cpu",
            "devices": 1,
            "precision": "bf16-mixed" if request.bf16 else "32-true",
            "max_steps": (1 + request.windows) * request.window_steps,
            "log_every_n_steps": request.window_steps,
            "limit_val_batches": 0,
        },
    }


def measure(request: Request) -> list[float]:
    """Tokens/s of each window."""
    workdir = Path(request.workdir)
    corpus = random_corpus(request.shape, workdir)
    with tempfile.TemporaryDirectory(dir=workdir) as runs:
        config = Path(runs) / "benchmark.yaml"
        config.write_text(yaml.safe_dump(run_config(request, corpus, Path(runs))))
        run([*CLI, "fit", "-c", str(config)])
        from lightning_gpt.callbacks.jsonl_logger import read_metrics

        (metrics,) = Path(runs).rglob("metrics.jsonl")
        key = "speed/tokens_per_second"
        return [row[key] for row in read_metrics(metrics) if key in row][1:]
