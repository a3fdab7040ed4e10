"""Runs programs that a model wrote, fenced in: time, memory, processes, files and network cut; still only on request.

No fence of this kind is proof against malice: use a machine that nothing depends on for models you do not know.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

MOST_OUTPUT = 1 << 20
"""Bytes that a program may write to one file, its error output included."""
FENCE = """
import os, resource, sys
finished = os.fdopen({end}, "w")
sys.dont_write_bytecode = True
def limit(kind, value):
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):
        pass
limit(resource.RLIMIT_AS, {memory})
limit(resource.RLIMIT_CPU, {seconds} + 1)
limit(resource.RLIMIT_FSIZE, {most_output})
limit(resource.RLIMIT_CORE, 0)
limit(resource.RLIMIT_NOFILE, 64)
refused = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.kill",
           "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chdir", "shutil.",
           "ctypes.", "os.chmod", "os.chown", "os.putenv")
here = {directory!r} + os.sep
library = tuple(os.path.realpath(part) + os.sep for part in sys.path if part)
def guard(event, arguments):
    if event.startswith(refused):
        raise PermissionError("not allowed here: " + event)
    if event in ("open", "os.listdir", "os.scandir") and not isinstance(arguments[0], int):
        path = os.path.realpath(os.fsdecode(arguments[0] or ".")) + os.sep
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not (path.startswith(here) or (path.startswith(library) and not writes)):
            raise PermissionError("not allowed here: opening " + path.rstrip(os.sep))
source = compile(open({program!r}).read(), "program", "exec")
sys.addaudithook(guard)
exec(source, {{"__name__": "__main__"}})
finished.write({word!r})
finished.close()
"""


@dataclass(frozen=True)
class Fence:
    """What keeps a program from the network and from outliving its time."""

    name: str
    command: tuple[str, ...]
    """Put before the program's own."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool
    reason: str
    """"passed", "timed out", "left before its end", or the last line of its error."""


@functools.lru_cache(maxsize=1)
def fence() -> Fence:
    """The best that this machine allows: namespaces of its own for network and processes (all of them die with the
    first), for the network alone, or only the refusal of sockets inside Python."""
    unshare = shutil.which("unshare")
    if unshare is not None:
        ways = (
            ("namespaces for network and processes", "-rn", "-pf", "--kill-child"),
            ("a namespace for the network", "-rn"),
        )
        for name, *options in ways:
            if subprocess.run([unshare, *options, "true"], capture_output=True, check=False).returncode == 0:
                return Fence(name, (unshare, *options))
    return Fence("an audit hook that refuses sockets", ())


def run_program(program: str, seconds: float = 5.0, memory_bytes: int = 1 << 30) -> Outcome:
    """Executes a program in a process of its own and an empty directory; it passes when it ends without an error.

    It may read Python's library and use files in its directory; other files, sockets and processes are refused.

    Args:
        program: Python source, its tests included.
        seconds: after which it and all its children are killed.
        memory_bytes: of address space.
    """
    with tempfile.TemporaryDirectory() as place:
        directory = os.path.join(place, "here")
        os.mkdir(directory)
        path = os.path.join(place, "program.py")
        with open(path, "w", encoding="utf-8", errors="replace") as file:
            file.write(program)
        # A word at its end tells a program that came through from one that left early, by sys.exit(0) say.
        word = secrets.token_hex(8)
        reading, writing = os.pipe()
        fenced = FENCE.format(
            memory=memory_bytes,
            seconds=math.ceil(seconds),
            most_output=MOST_OUTPUT,
            directory=os.path.realpath(directory),
            program=path,
            end=writing,
            word=word,
        )
        # A file and no pipe: what a program pours out must not fill our memory.
        with open(os.path.join(place, "errors"), "w+b") as errors:
            process = subprocess.Popen(
                [*fence().command, sys.executable, "-I", "-S", "-c", fenced],
                cwd=directory,
                env={"PATH": "", "HOME": directory, "PYTHONHASHSEED": "0"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
                pass_fds=(writing,),
            )
            os.close(writing)
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                return Outcome(False, "timed out")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                os.set_blocking(reading, False)  # a child that got away may hold the other end
                with open(reading, "rb") as end:
                    came_through = (end.read() or b"") == word.encode()
            if process.returncode == 0:
                return Outcome(True, "passed") if came_through else Outcome(False, "left before its end")
            errors.seek(max(errors.seek(0, os.SEEK_END) - 2000, 0))
            lines = errors.read().decode("utf-8", "replace").strip().splitlines()
        return Outcome(False, lines[-1][:200] if lines else f"ended with status {process.returncode}")
