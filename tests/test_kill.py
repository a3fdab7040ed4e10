"""A run that is killed again and again and resumed is the run that was never killed, bit for bit."""

import json
import os
import random
import subprocess
import sys
import time

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.cli import main
from lightning_gpt.hub.checkpoint import read_checkpoint

STEPS = 400
KILLS = 3


def measured(run):
    """Everything but speed, time and memory, by step and kind."""
    rows = read_metrics(run / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.startswith(("speed/", "memory/"))} for row in rows]


def newest_step(run) -> int:
    try:
        rows = read_metrics(run / "metrics.jsonl")
    except FileNotFoundError:
        return 0
    return max((row["step"] for row in rows), default=0)


def kill_at(step: int, args: list[str], run) -> int:
    """Starts the run and sends SIGKILL soon after it has logged `step`; the newest logged step."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", "from lightning_gpt.cli import main; main()", *args]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while newest_step(run) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -9, f"ended by itself with {process.returncode}: {errors}"
    return newest_step(run)


def test_killed_three_times_is_never_killed(clean_process, one_thread, recipe, tmp_path):
    args = ["fit", "-c", str(recipe), "--trainer.max_steps", str(STEPS), "--trainer.precision", "bf16-mixed"]
    args += ["--trainer.accumulate_grad_batches", "2", "--model.config.dropout", "0.1", "--samples.tokens", "3"]
    args += ["--last.every_n_steps", "3", "--trainer.val_check_interval", "50", "--run.dir"]
    main([*args, str(tmp_path / "never")])
    never = tmp_path / "never" / "tiny" / "version_0"

    seed = int(os.environ.get("KILL_SEED", "0"))
    targets = sorted(random.Random(seed).sample(range(5, STEPS - 100), KILLS))
    killed = tmp_path / "killed" / "tiny" / "version_0"
    stops = []
    for number, target in enumerate(targets):
        resume = ["--ckpt_path", "last"] if number else []
        target = max([target, *(stop + 7 for stop in stops)])
        stops.append(kill_at(target, [*args, str(tmp_path / "killed"), *resume], killed))
        saved = read_checkpoint(killed / "checkpoints" / "last.ckpt")["global_step"]
        assert stops[-1] - 4 <= saved <= stops[-1] + 1, "more is lost than the steps since the last save"
    main([*args, str(tmp_path / "killed"), "--ckpt_path", "last"])
    assert [path.name for path in killed.parent.iterdir()] == ["version_0"]
    told = json.dumps({"targets": targets, "killed at": stops})
    losses = [
        {row["step"]: row["train/loss"] for row in measured(run) if "train/loss" in row} for run in (never, killed)
    ]
    assert sorted(losses[0]) == list(range(1, STEPS + 1))
    assert losses[1] == losses[0], told
    assert measured(killed) == measured(never), told
