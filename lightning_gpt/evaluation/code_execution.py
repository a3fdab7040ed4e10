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
limit(resource.RLIMIT_FSIZE, 1 << 20)
limit(resource.RLIMIT_CORE, 0)
refused = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.kill",
           "os.remove", "os.rename", "os.rmdir", "shutil.", "ctypes.", "os.chmod", "os.chown", "os.putenv")
here = {directory!r}
def guard(event, arguments):
    if event.startswith(refused):
        raise PermissionError("not allowed here: " + event)
    if event == "open" and isinstance(arguments[0], str):
        wants = arguments[1] or ""
        if any(letter in wants for letter in "wax+") and not os.path.abspath(arguments[0]).startswith(here):
            raise PermissionError("not allowed here: writing " + arguments[0])
sys.addaudithook(guard)
exec(compile(open({program!r}).read(), "program", "exec"), {{"__name__": "__main__"}})
finished.write({word!r})
finished.close()
"""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool
    reason: str
    """"passed", "timed out", or the last line of its error."""


@functools.lru_cache(maxsize=1)
def network_cut() -> tuple[str, ...]:
    """The command that takes the network away; empty where this machine does not allow it: then sockets are refused
    inside Python alone."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    trial = subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False)
    return (unshare, "-rn") if trial.returncode == 0 else ()


def run_program(program: str, seconds: float = 5.0, memory_bytes: int = 1 << 30) -> Outcome:
    """Executes a program in a process of its own and an empty directory; it passes when it ends without an error.

    Args:
        program: Python source, its tests included.
        seconds: after which it and all its children are killed.
        memory_bytes: of address space.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "program.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(program)
        # A word at its end tells a program that came through from one that left early, by sys.exit(0) say.
        word = secrets.token_hex(8)
        reading, writing = os.pipe()
        fenced = FENCE.format(
            memory=memory_bytes,
            seconds=math.ceil(seconds),
            directory=os.path.realpath(directory),
            program=path,
            end=writing,
            word=word,
        )
        process = subprocess.Popen(
            [*network_cut(), sys.executable, "-I", "-S", "-c", fenced],
            cwd=directory,
            env={"PATH": "", "HOME": directory, "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=(writing,),
        )
        os.close(writing)
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, "timed out")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            with os.fdopen(reading) as end:
                came_through = end.read() == word
        if process.returncode == 0 and came_through:
            return Outcome(True, "passed")
        if process.returncode == 0:
            return Outcome(False, "left before its end")
        lines = errors.decode("utf-8", "replace").strip().splitlines()
        return Outcome(False, lines[-1][:200] if lines else f"ended with status {process.returncode}")


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Probability that one of k samples passes, without bias (Chen et al., 2021): 1 - C(n - c, k) / C(n, k)."""
    if samples - passed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / n for n in range(samples - passed + 1, samples + 1))
