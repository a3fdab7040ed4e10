"""What happens when one of several ranks fails, stalls, is killed or is told to stop: all end soon, one says why, and
the run goes on from there as if nothing had been."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.callbacks.run_record import read_record
from lightning_gpt.hub.checkpoint import read_checkpoint

RUN = Path("runs/tiny/version_0")


class AtStep(Callback):
    """Does something on rank 1 in the middle of optimizer step 3."""

    rank = 1

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_rank == self.rank and trainer.global_step == 2:
            self.act(pl_module)


class Fail(AtStep):
    def act(self, task):
        raise OSError("no space left on the moon")


class Mistake(AtStep):
    def act(self, task):
        raise KeyError("a mistake of ours")


class Kill(AtStep):
    def act(self, task):
        os.kill(os.getpid(), signal.SIGKILL)


class KillFirst(Kill):
    """The rank that holds the store and writes the files."""

    rank = 0


class Terminate(AtStep):
    def act(self, task):
        os.kill(os.getpid(), signal.SIGTERM)


class Announce(AtStep):
    """As SLURM does before the time limit."""

    def act(self, task):
        os.kill(os.getpid(), signal.SIGUSR1)


class Linger(AtStep):
    """A step longer than the grace."""

    def act(self, task):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


class Stall(AtStep):
    def act(self, task):
        time.sleep(600)


class Sicken(AtStep):
    """From here on the losses of this rank alone are NaN."""

    def act(self, task):
        healthy = task.loss_function

        def loss(*args):
            total, *rest = healthy(*args)
            return total * float("nan"), *rest

        task.loss_function = loss


@pytest.fixture
def two(recipe):
    """The tiny recipe for two ranks."""
    return ["fit", "-c", recipe, "--trainer.devices", 2, "--trainer.strategy", "ddp", "--last.every_n_steps", 1]


@pytest.fixture
def struck(two, processes):
    """struck("Fail", options): how two ranks end; it must not take long."""

    def run(fault: str, *options: object, **environment: str):
        command = [*two, f"--trainer.callbacks+=test_faults.{fault}", *options]
        return processes(2, command, timeout=40, check=False, **environment)

    return run


def told(outcomes) -> list[tuple[int, str]]:
    """(rank, line) of every error line that was printed."""
    lines = [(rank, line) for rank, outcome in enumerate(outcomes) for line in outcome.text.splitlines()]
    return [(rank, line) for rank, line in lines if "error: " in line or line.startswith("stopped by")]


def saved_step() -> int:
    return read_checkpoint(RUN / "checkpoints" / "last.ckpt")["global_step"]


def test_an_error_on_one_rank_ends_all_with_its_line(struck):
    outcomes = struck("Fail")
    assert [outcome.code for outcome in outcomes] == [1, 1]
    assert told(outcomes) == [(1, "lightning-gpt: error: rank 1: no space left on the moon")]
    assert read_record(RUN)["message"] == "rank 1: no space left on the moon"
    assert saved_step() == 2


def test_a_mistake_of_ours_shows_its_traceback_once(struck):
    outcomes = struck("Mistake")
    assert [outcome.code for outcome in outcomes] == [1, 1]
    assert "Traceback" not in outcomes[0].text
    assert "KeyError: 'a mistake of ours'" in outcomes[1].text
    assert read_record(RUN)["message"] == "rank 1: KeyError: 'a mistake of ours'"


@pytest.mark.parametrize(("fault", "rank"), [("Kill", 1), ("KillFirst", 0)])
def test_a_killed_rank_is_named(struck, fault, rank):
    outcomes = struck(fault)
    assert outcomes[rank].code == -signal.SIGKILL
    assert outcomes[1 - rank].code == 1
    ((teller, line),) = told(outcomes)
    assert teller == 1 - rank
    assert line.startswith(f"lightning-gpt: error: rank {rank} ")
    assert "is gone" in line
    assert line.endswith("(killed, or its machine lost); continue with --ckpt_path last")
    assert saved_step() == 2


def test_a_loss_that_is_sick_on_one_rank_stops_all_in_its_step(struck):
    outcomes = struck("Sicken", "--diagnosis.enabled", "false")
    assert [outcome.code for outcome in outcomes] == [1, 1]
    ((_, line),) = told(outcomes)
    assert "the loss is nan on rank 1 in optimizer step 4" in line
    record = read_record(RUN)
    assert (record["status"], record["step"]) == ("diverged", 3)
    saved = read_checkpoint(RUN / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == 3
    assert all(bool(value.isfinite().all()) for value in saved["state_dict"].values())


def test_a_signal_that_one_rank_hears_stops_all(struck):
    outcomes = struck("Terminate")
    assert [outcome.code for outcome in outcomes] == [143, 143]
    line = f"stopped by SIGTERM: saved {RUN}/checkpoints/last.ckpt at step 3; continue with --ckpt_path last"
    assert told(outcomes) == [(0, line)]
    assert saved_step() == 3
    assert read_record(RUN)["status"] == "interrupted"


def test_slurm_is_asked_once_to_run_the_job_again(struck, tmp_path):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "41", "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "7"}
    outcomes = struck("Announce", PATH=f"{scontrol.parent}:{os.environ['PATH']}", **slurm)
    assert [outcome.code for outcome in outcomes] == [138, 138]
    assert (tmp_path / "asked").read_text() == "requeue 40_7\n"
    assert outcomes[0].text.rstrip().endswith("; SLURM job 40_7 is queued again")


def test_a_stop_takes_no_longer_than_its_grace(struck):
    outcomes = struck("Linger", "--stop.grace_seconds", 1)
    assert outcomes[1].code == 143
    assert outcomes[0].code == 1
    assert "took longer than stop.grace_seconds=1" in outcomes[1].text
    assert saved_step() == 2


def test_a_rank_that_stalls_is_named_with_its_stack(struck):
    outcomes = struck("Stall", "--watchdog.seconds", 2)
    assert [outcome.code for outcome in outcomes] == [1, 1]
    ((_, line),) = told(outcomes)
    assert "rank 1 lags behind: after step 2, backward, at parallel/test_faults.py:" in line
    assert " in act; stacks in " in line
    assert "in act" in (RUN / "stacks" / "rank_1.txt").read_text()
    assert "backward" in (RUN / "stacks" / "rank_0.txt").read_text()


def test_an_error_before_training_ends_all(two, processes):
    def start(rank: int) -> None:
        from lightning_gpt.cli import main

        main([str(word) for word in two] + ([] if rank == 0 else ["--data.data_dir", "nowhere"]))

    outcomes = processes(2, start, timeout=40, check=False)
    assert [outcome.code for outcome in outcomes] == [1, 2]
    ((teller, line),) = told(outcomes)
    assert teller == 1
    assert "nowhere" in line


def test_a_rank_that_starts_late_joins_the_same_run(two, processes):
    def start(rank: int) -> None:
        from lightning_gpt.cli import main

        time.sleep(rank)
        main([str(word) for word in two])

    processes(2, start, timeout=40)
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]


# --- again and again ------------------------------------------------------------------------------------------------


def measured(run: Path) -> list[dict[str, float]]:
    """Everything but speed and time."""
    rows = read_metrics(run / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.startswith(("speed/", "memory/"))} for row in rows]


def newest_step(root: Path) -> int:
    found = [row["step"] for path in root.glob("version_*/metrics.jsonl") for row in read_metrics(path)]
    return max(found, default=0)


def strike(group, draw: random.Random) -> str:
    """kill -9, or SIGTERM, to one rank or to all."""
    number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    victims = draw.choice([[0], [1], [0, 1]])
    for rank in victims:
        os.kill(group.processes[rank].pid, number)
    return f"{number.name} to {victims}"


def survive(rounds: int, recipe: Path, start_processes, tmp_path: Path, seed: int) -> None:
    common = ["fit", "-c", recipe, "--trainer.devices", 2, "--trainer.strategy", "ddp"]
    steps = 30 * rounds + 30
    common += ["--trainer.max_steps", steps, "--trainer.accumulate_grad_batches", 2, "--model.config.dropout", 0.1]
    common += ["--last.every_n_steps", 3, "--trainer.val_check_interval", 20, "--samples.tokens", 0]
    command = [*common, "--ckpt_path", "auto", "--run.dir", tmp_path / "killed"]
    assert [one.code for one in start_processes(2, [*common, "--run.dir", tmp_path / "never"]).join(400)] == [0, 0]
    draw, told = random.Random(seed), []
    root = tmp_path / "killed" / "tiny"
    for number in range(rounds):
        group = start_processes(2, command)
        target = max(30 * number + draw.randint(5, 20), newest_step(root) + 1)
        deadline = time.monotonic() + 120
        while newest_step(root) < target and group.processes[0].is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.02)
        told.append(f"{strike(group, draw)} at step {newest_step(root)}")
        outcomes = group.join(60)  # no hang, none left
        assert all(outcome.code for outcome in outcomes), (told, [outcome.text for outcome in outcomes])
    assert [one.code for one in start_processes(2, command).join(400)] == [0, 0], told
    never, killed = tmp_path / "never" / "tiny" / "version_0", root / "version_0"
    assert measured(killed) == measured(never), told
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (read_checkpoint(run / "checkpoints" / name) for run in (killed, never))
        assert ours["global_step"] == theirs["global_step"]
        for key, value in theirs["state_dict"].items():
            assert torch.equal(ours["state_dict"][key], value), (told, key)


def test_killed_three_times_is_never_killed_with_two_ranks(recipe, start_processes, tmp_path):
    survive(3, recipe, start_processes, tmp_path, seed=int(os.environ.get("KILL_SEED", "0")))


@pytest.mark.slow
def test_killed_twenty_times_is_never_killed_with_two_ranks(recipe, start_processes, tmp_path):
    survive(20, recipe, start_processes, tmp_path, seed=int(os.environ.get("KILL_SEED", "1")))


# --- launchers ------------------------------------------------------------------------------------------------------


def ranks_of(run: str) -> list[int]:
    """Processes whose command line holds `run`, this test's name for its run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if run.encode() in words:
            found.append(int(path.parent.name))
    return found


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "other"])
def test_lightnings_own_ranks_leave_none_behind(two, tmp_path, clean_process, victim):
    name = f"orphan_{victim}_{os.getpid()}"
    command = [
        sys.executable,
        "-m",
        "lightning_gpt",
        *map(str, two),
        "--run.name",
        name,
        "--trainer.max_steps",
        "100000",
    ]
    with open(tmp_path / "log.txt", "w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: newest_step(Path("runs") / name) > 5, 120)
        others = [pid for pid in ranks_of(name) if pid != first.pid]
        os.kill(first.pid if victim == "launcher" else others[0], signal.SIGKILL)
        assert first.wait(30) == (-signal.SIGKILL if victim == "launcher" else 1)
        wait_until(lambda: not ranks_of(name), 30)
    finally:
        for pid in ranks_of(name):
            os.kill(pid, signal.SIGKILL)
    errors = [line for line in (tmp_path / "log.txt").read_text().splitlines() if "is gone" in line]
    assert errors, (tmp_path / "log.txt").read_text()
    assert "continue with --ckpt_path last" in errors[0]


@pytest.mark.slow
def test_torchrun_starts_again_where_a_rank_was_killed(two, tmp_path, clean_process):
    name = f"elastic_{os.getpid()}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "2", "-m", "lightning_gpt", *map(str, two), "--run.name", name]
    command += ["--trainer.max_steps", "120", "--ckpt_path", "auto", "--trainer.val_check_interval", "50"]
    with open(tmp_path / "log.txt", "w") as log:
        agent = subprocess.Popen(command, stdout=log, stderr=log)
    root = Path("runs") / name
    try:
        wait_until(lambda: newest_step(root) > 20, 120)
        os.kill(max(ranks_of(name)), signal.SIGKILL)
        assert agent.wait(180) == 0, (tmp_path / "log.txt").read_text()
    finally:
        for pid in ranks_of(name):
            os.kill(pid, signal.SIGKILL)
    assert [path.name for path in root.iterdir()] == ["version_0"]
    steps = [row["step"] for row in read_metrics(root / "version_0" / "metrics.jsonl") if "train/loss" in row]
    assert steps == list(range(1, 121))
    assert read_record(root / "version_0")["attempts"] == 2
