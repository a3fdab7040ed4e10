"""The service as a process of its own, for whoever measures or tests it from outside."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

START_S = 180.0
"""A busy machine imports torch slowly."""


class ServiceProcess:
    """`lightning-gpt serve` with a configuration, ready when it is there.

    Args:
        folder: for its configuration (service.yaml), log (service.jsonl) and output (service.txt).
        settings: of service.yaml; a free port of this machine unless it says which.
        environment: variables beside the process's own.

    Raises:
        RuntimeError: it does not begin to serve; with the end of its output.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], environment: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = settings.get("port") or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output, self.log = folder / "service.txt", folder / "service.jsonl"
        self.log.unlink(missing_ok=True)
        content = {"log": {"path": str(self.log)}, **settings, "host": "127.0.0.1", "port": self.port}
        path = folder / "service.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        command = [sys.executable, "-m", "lightning_gpt", "serve", str(path)]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> ServiceProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _wait(self) -> None:
        end = time.monotonic() + START_S
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the service did not start: {self.output.read_text()[-2000:]}")
            time.sleep(0.1)

    def ready(self) -> bool:
        """Whether it takes requests."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self) -> int:
        """Drains it, or ends it when that takes a minute; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
