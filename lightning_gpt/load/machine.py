"""The processor that a load ran on, and what the server's processes took of it."""

from __future__ import annotations

import os
import platform
import threading
import time
from pathlib import Path
from typing import Any

import psutil

FIND_CHILDREN_EVERY = 5
"""Samples between looks for new child processes, which cost more than the samples."""


def hardware() -> dict[str, Any]:
    """Name of the processor, and the number of cores that this process may use: ask before it is kept to one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor() or platform.machine(), "cores": cores}


def pin(cpu: int) -> set[int]:
    """Keeps this process to a core; the cores that it had.

    Raises:
        ValueError: there is no such core, or the system cannot do it.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(f"cpu={cpu}: this system cannot keep a process to a core, leave cpu out")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cpu})
    except (OSError, ValueError, OverflowError):
        raise ValueError(f"cpu={cpu} is not there, this process may use {sorted(before)}") from None
    return before


class Watcher:
    """Samples processes and their children once a second, in a thread.

    Args:
        pids: of the processes.

    Raises:
        ValueError: one of them does not run.
    """

    def __init__(self, pids: tuple[int, ...]) -> None:
        self.samples: list[dict[str, float]] = []
        """A dictionary a second: second, rss_bytes (resident memory; shared pages count in every process), cpu_percent
        (100 = one core), processes."""
        self._roots = pids
        self._known: dict[int, psutil.Process] = {}
        for pid in pids:
            if not psutil.pid_exists(pid):
                raise ValueError(f"watch_pid={pid}: no such process")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """The clock runs from here."""
        self._find()
        self._sample()
        self.samples.clear()  # processor time is counted between samples
        self._began = time.perf_counter()
        self._thread.start()

    def stop(self) -> None:
        """No more samples."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        count = 0
        while not self._ended.wait(max(self._began + count + 1 - time.perf_counter(), 0)):
            count += 1
            if count % FIND_CHILDREN_EVERY == 0:
                self._find()
            self._sample()

    def _find(self) -> None:
        for pid in self._roots:
            try:
                root = self._known.get(pid) or psutil.Process(pid)
                family = [root, *root.children(recursive=True)]
            except psutil.Error:
                continue
            for process in family:
                self._known.setdefault(process.pid, process)

    def _sample(self) -> None:
        resident = share = 0.0
        for pid, process in list(self._known.items()):
            try:
                with process.oneshot():
                    resident += process.memory_info().rss
                    share += process.cpu_percent()
            except psutil.Error:
                del self._known[pid]
        second = time.perf_counter() - self._began if self._thread.is_alive() else 0.0
        self.samples.append(
            {"second": second, "rss_bytes": resident, "cpu_percent": share, "processes": len(self._known)}
        )
