"""The real service as a process, and the processor time of each of its parts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from lightning_gpt.serving.process import START_S, ServiceProcess


class Running(ServiceProcess):
    """The service, of whose requests only those that fail are logged, and its processes."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        super().__init__(folder, {"log": {"path": str(folder / "service.jsonl"), "requests": "errors"}, **settings})
        self.gateway = psutil.Process(self.process.pid)

    def workers(self) -> list[psutil.Process]:
        """Alive, the oldest first."""
        children = [one for one in self.gateway.children() if one.status() != psutil.STATUS_ZOMBIE]
        return sorted(children, key=lambda one: one.create_time())

    def events(self, name: str) -> list[dict[str, Any]]:
        """What its log says of an event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [line for line in lines if line["event"] == name]


def wait_ready(url: str, process: subprocess.Popen, seconds: float = START_S) -> None:
    """Until a server answers.

    Raises:
        RuntimeError: it ended, or does not.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{url} does not answer (exit status {process.poll()})")
        time.sleep(0.2)


class Shares:
    """Processor time of gateway, workers and generator over an interval, as shares of a core."""

    def __init__(self, service: Running, generator: int | None = None) -> None:
        self._processes = {"gateway": [service.gateway], "worker": service.workers()}
        if generator is not None:
            self._processes["generator"] = [psutil.Process(generator)]
        self._before, self._at = self._times(), time.monotonic()

    def _times(self) -> dict[str, float]:
        return {name: sum(map(_seconds, all_of_it)) for name, all_of_it in self._processes.items()}

    def measured(self) -> dict[str, float]:
        """Since the beginning, or since the last call."""
        now, times = time.monotonic(), self._times()
        shares = {name: (times[name] - self._before[name]) / (now - self._at) for name in times}
        self._before, self._at = times, now
        return shares


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def load(folder: Path, url: str, *options: object) -> tuple[subprocess.Popen, list[str]]:
    """Begins `lightning-gpt load`; the process and its command."""
    command = [sys.executable, "-m", "lightning_gpt", "load", url, "--output", str(folder), *map(str, options)]
    return subprocess.Popen(command, stdout=sys.stderr), ["lightning-gpt", *command[3:]]
