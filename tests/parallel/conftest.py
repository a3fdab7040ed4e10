"""Several processes for a test, forked from this one: everything is imported once, a group starts in half a second."""

import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch


@dataclass
class Outcome:
    """How a process ended."""

    code: int
    """0 done, n > 0 its exit status, -n killed by signal n."""
    text: str
    """What it printed, both streams."""
    value: Any
    """What the function returned, where it is no command."""


class Group:
    """Processes that believe torchrun has started them.

    Args:
        count: how many.
        job: arguments of `lightning-gpt`, or a function of the rank whose result comes back.
        place: an empty directory.
        environment: what the processes have besides.
    """

    def __init__(self, count: int, job: Sequence | Callable[[int], Any], place: Path, environment: dict) -> None:
        self.place = place
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "GROUP_RANK": 0,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "test",  # by which Lightning knows that it need not start processes itself
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": 1,
            **environment,
        }
        fork = multiprocessing.get_context("fork")
        self.processes = []
        for rank in range(count):
            own = {**shared, "RANK": rank, "LOCAL_RANK": rank}
            self.processes.append(fork.Process(target=_run, args=(rank, job, own, place), daemon=True))
        sys.stdout.flush(), sys.stderr.flush()
        for process in self.processes:
            process.start()

    def text(self, rank: int) -> str:
        """What a process has printed so far."""
        path = self.place / f"{rank}.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def join(self, timeout: float) -> list[Outcome]:
        """Waits for all; kills them and fails when they are not done in `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        self.kill()
        told = [self.text(rank) for rank in range(len(self.processes))]
        assert not late, f"processes {late} did not end in {timeout} s:\n" + "\n".join(text[-3000:] for text in told)
        values = [self.place / f"{rank}.pickle" for rank in range(len(self.processes))]
        return [
            Outcome(process.exitcode, text, pickle.loads(value.read_bytes()) if value.exists() else None)
            for process, text, value in zip(self.processes, told, values)
        ]

    def kill(self) -> None:
        """Leaves nothing behind: a process stuck in a collective survives SIGTERM."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()


def _run(rank: int, job: Sequence | Callable[[int], Any], environment: dict, place: Path) -> None:
    """The life of one process."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)  # while there is one thread: it mends the pool that the fork broke, and two would race
    with open(place / f"{rank}.txt", "w", buffering=1) as printed:
        os.dup2(printed.fileno(), 1), os.dup2(printed.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        code = 0
        try:
            if callable(job):
                value = job(rank)
                (place / f"{rank}.pickle").write_bytes(pickle.dumps(value))
            else:
                from lightning_gpt.cli import main

                main([str(word) for word in job])
        except SystemExit as error:
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            if code == 0 and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)


@pytest.fixture
def start_processes(one_thread, clean_process, tmp_path):
    """start_processes(2, ["fit", "-c", ...] or a function of the rank, **environment): a Group under way, for tests
    that do something to it; what is left of it is killed after the test."""
    import lightning_gpt.cli.training
    import lightning_gpt.data
    import lightning_gpt.tasks  # noqa: F401 - so that every process has it

    groups: list[Group] = []

    def start(count: int, job: Sequence | Callable[[int], Any], **environment: Any) -> Group:
        place = tmp_path / f"group_{len(groups)}"
        place.mkdir()
        groups.append(Group(count, job, place, environment))
        return groups[-1]

    yield start
    for group in groups:
        group.kill()


@pytest.fixture
def processes(start_processes):
    """processes(2, ["fit", "-c", ...] or a function of the rank, timeout=60): the Outcomes when all have ended.

    A function's `torch.distributed` is not initialised yet: torch.distributed.init_process_group("gloo") does it.
    Unless `check` is False, a process that ends with anything but 0 fails the test with what it printed.
    """

    def run(
        count: int, job: Sequence | Callable[[int], Any], timeout: float = 60, check: bool = True, **environment: Any
    ) -> list[Outcome]:
        outcomes = start_processes(count, job, **environment).join(timeout)
        if check and any(outcome.code for outcome in outcomes):
            told = (f"rank {rank} ended with {one.code}:\n{one.text[-3000:]}" for rank, one in enumerate(outcomes))
            pytest.fail("\n".join(told))
        return outcomes

    return run
