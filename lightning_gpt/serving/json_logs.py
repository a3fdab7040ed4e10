"""The service's log: one JSON object a line, of each request and of what happens to the service.

Lines go through a bounded list to a thread that writes them, so that a slow reader of the pipe never holds the event
loop up: what does not fit is dropped and counted, and the count is the next line that gets through. Prompts, answers
and keys are never written by default, nor the messages of exceptions, which may quote them. Rotation is left to the
platform: a file is only appended to, as copytruncate needs it.
"""

from __future__ import annotations

import logging
import os
import re
import select
import sys
import threading
import traceback
import zlib
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lightning_gpt.serving.record import RequestRecord

Level = Literal["info", "warning", "error"]
REQUEST_FIELDS = (
    "ts",
    "level",
    "event",
    "request_id",
    "endpoint",
    "method",
    "status",
    "code",
    "model",
    "version",
    "tenant",
    "stream",
    "prompt_tokens",
    "completion_tokens",
    "queue_ms",
    "ttft_ms",
    "duration_ms",
    "finish_reason",
    "retries",
    "degraded",
    "cached",
)
"""Of a line with event=request, all of them always; what is not known is null."""
EVENTS = (
    "started",
    "ready",
    "worker_ready",
    "worker_died",
    "worker_failed",
    "worker_silent",
    "versions_changed",
    "breaker",
    "degradation",
    "rollback",
    "tenants_refused",
    "quotas_damaged",
    "quotas_not_kept",
    "draining",
    "stopped",
    "failure",
    "server",
    "log_lines_dropped",
)
"""Events of the service itself; their lines have ts, level, event and fields of their own."""
_SECRETS = re.compile(r"(?i)(bearer\s+|\bsk-|api[-_]?key[=:\s]+)[^\s\"',;]+")
_GAP_S = 0.02  # between two writes: a flood of errors costs 50 wake-ups a second, not one a line


def parse_share(value: str | float) -> float:
    """Share of the successful requests that are logged: all = 1, errors = 0, else a number between.

    Raises:
        ValueError: none of these.
    """
    words = {"all": 1.0, "errors": 0.0}
    try:
        share = words[value] if isinstance(value, str) and value in words else float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"log_requests={value} must be all, errors or a share such as 0.1")
    return share


def open_log_file(path: str | Path) -> int:
    """A descriptor that appends to a file; "-" = standard output.

    Raises:
        ValueError: it cannot be written.
    """
    if str(path) == "-":
        return os.dup(sys.__stdout__.fileno()) if sys.__stdout__ else os.open(os.devnull, os.O_WRONLY)
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ValueError(f"log.path={path} cannot be written ({error.strerror}): name a file that can") from None


class JsonLog:
    """Writes lines to a descriptor, from a thread of its own.

    Lines are written a quarter of a second after they came, when 256 of them wait, or at once when one of them is a
    warning or an error. To be used from one thread, the event loop's; a line costs it about 5 us.

    Args:
        descriptor: to write to; belongs to the log, which closes it.
        requests: all, errors or the share of successful requests to log. Others are always logged. The share is drawn
            by the request's id, so several services log the same.
        prompts: also write prompts, answers and the messages of exceptions.
        capacity: lines that may wait; the service's own events may take twice as many.
    """

    def __init__(
        self, descriptor: int, requests: str | float = "all", prompts: bool = False, capacity: int = 8192
    ) -> None:
        import orjson

        self._dumps, self._option = orjson.dumps, orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE
        self._threshold = int(parse_share(requests) * 2**32)
        self._prompts, self._capacity, self._descriptor = prompts, capacity, descriptor
        self._lines: deque[bytes] = deque()
        self._no_room = self._unwritten = 0  # lines: counted by the caller's thread, by the log's
        self._told = 0  # of both, those that a line in the log tells of
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that did not fit or could not be written."""
        return self._no_room + self._unwritten

    def request(self, record: RequestRecord, prompt: str | None = None, answer: str | None = None) -> None:
        """Logs a finished request.

        Args:
            record: with `finished` set.
            prompt: written only by a log that was made with prompts=True.
            answer: likewise.
        """
        failed = record.status >= 400 or record.code is not None
        if not failed and zlib.crc32(record.request_id.encode("utf-8", "replace")) >= self._threshold:
            return
        level: Level = "info"
        if failed:
            broken = record.status < 400  # a stream that ended after its headers had gone
            level = "error" if broken or record.status >= 500 else "warning"
        line = {
            "ts": datetime.now(UTC),
            "level": level,
            "event": "request",
            "request_id": record.request_id,
            "endpoint": record.endpoint[:200],
            "method": record.method,
            "status": record.status,
            "code": record.code,
            "model": record.model[:200],  # as the client wrote it
            "version": record.version,
            "tenant": record.tenant,
            "stream": record.stream,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "queue_ms": _ms(record.received, record.dispatched),
            "ttft_ms": _ms(record.received, record.first_token),
            "duration_ms": _ms(record.received, record.finished),
            "finish_reason": record.finish_reason,
            "retries": record.retries,
            "degraded": record.degraded,
            "cached": record.cached,
        }
        if self._prompts:
            line |= {"prompt": prompt, "answer": answer}
        self._put(line, self._capacity)

    def event(self, event: str, level: Level = "info", **fields: Any) -> None:
        """Logs what happened to the service. Texts that look like keys are blotted out.

        Args:
            event: a word of EVENTS.
            fields: numbers, short texts, lists or dictionaries of them.
        """
        clean = {name: _blotted(value) if isinstance(value, str) else value for name, value in fields.items()}
        self._put({"ts": datetime.now(UTC), "level": level, "event": event, **clean}, 2 * self._capacity)

    def failure(self, error: BaseException, **fields: Any) -> None:
        """Logs an exception that should not have happened: its type and where it came from, but not its message."""
        frames = traceback.extract_tb(error.__traceback__)[-8:]
        at = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        if self._prompts:
            fields["message"] = str(error)
        self.event("failure", "error", error=type(error).__name__, at=at, **fields)

    def close(self, timeout_s: float = 2.0) -> None:
        """Writes what waits, if its reader takes it in this time. Lines that come later are dropped."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def _put(self, line: dict[str, Any], capacity: int) -> None:
        waiting = len(self._lines)
        if waiting >= capacity or self._closing.is_set():
            self._no_room += 1
            return
        self._lines.append(self._encoded(line))
        if waiting >= 256 or line["level"] != "info":
            self._wake.set()

    def _encoded(self, line: dict[str, Any]) -> bytes:
        try:
            return self._dumps(line, option=self._option)
        except TypeError:  # half a surrogate pair, or something that is no JSON
            import json

            line["ts"] = line["ts"].isoformat().replace("+00:00", "Z")
            return json.dumps(line, default=repr).encode() + b"\n"

    def _run(self) -> None:
        """The thread."""
        try:
            while True:
                self._wake.wait(0.25)
                self._wake.clear()
                last = self._closing.is_set()
                self._write_waiting()
                if last:
                    return
                self._closing.wait(_GAP_S)
        finally:
            os.close(self._descriptor)

    def _write_waiting(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        missing = self.dropped - self._told
        if missing:
            told = {"ts": datetime.now(UTC), "level": "warning", "event": "log_lines_dropped", "lines": missing}
            lines.insert(0, self._encoded(told))
        if not lines:
            return
        try:
            _write_all(self._descriptor, b"".join(lines))
            self._told += missing
        except OSError:  # nobody reads, or the disk is full: the service goes on
            self._unwritten += len(lines) - bool(missing)


def _write_all(descriptor: int, text: bytes) -> None:
    """By the descriptor itself: a buffered file that a thread hangs in cannot be closed when Python ends."""
    rest = memoryview(text)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # whoever started us left the pipe in this mode
            select.select([], [descriptor], [], 1.0)


def _ms(start: float, end: float | None) -> float | None:
    return None if end is None else round(1000 * (end - start), 3)


def _blotted(text: str) -> str:
    """Without what follows the marks of a key, and not long."""
    return _SECRETS.sub(r"\1***", text[:2000])


LIBRARIES = ("uvicorn", "uvicorn.error", "asyncio", "opentelemetry")
"""Loggers whose errors belong into the log."""


class _Router(logging.Handler):
    """Takes what libraries log."""

    def __init__(self, log: JsonLog) -> None:
        super().__init__(logging.ERROR)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """The first line only: asyncio goes on with the exception's own words, which may quote a prompt."""
        message = record.getMessage().partition("\n")[0][:300]
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            self._log.event("server", "error", logger=record.name, message=message)
        else:
            self._log.failure(error, logger=record.name)


def route_library_logs(log: JsonLog, names: tuple[str, ...] = LIBRARIES) -> None:
    """Sends the errors of these loggers into the log, and nothing of them anywhere else. uvicorn must be started with
    log_config=None and access_log=False, else it sets its own loggers up again."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Router(log)], False
        logger.setLevel(logging.ERROR)
