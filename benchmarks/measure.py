"""One measurement in a process of its own: allocator settings, thread pools and compiler caches do not leak.

python -m benchmarks.measure '{"contestant": ...}' prints {"tokens_per_second": [of each window]} as its last line.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from types import ModuleType

from benchmarks.request import ROOT, Request

CONTESTANTS: dict[str, str] = {
    "nanogpt": "nanoGPT",
    "litgpt": "litgpt",
    "huggingface": "HF GPT-2",
    "ours_bare": "ours, bare loop",
    "ours": "ours, Trainer",
    "matrix_products": "matrix products only",
}
"""Module under benchmarks/peers -> heading, in the order of measuring."""

PEERS = ("nanogpt", "litgpt", "huggingface")


def contestant(name: str) -> ModuleType:
    """Its module, with `missing(nanogpt) -> reason | None` and `measure(request) -> tokens/s of each window`."""
    return import_module(f"benchmarks.peers.{name}")


def measure(request: Request) -> dict:
    """{"tokens_per_second": [...]}, or {"error": one line} when the process failed."""
    command = [sys.executable, "-m", "benchmarks.measure", json.dumps(asdict(request))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = done.stderr.strip().splitlines()
    return {"error": lines[-1] if lines else f"exit status {done.returncode}"}


if __name__ == "__main__":
    asked = Request(**json.loads(sys.argv[1]))
    print(json.dumps({"tokens_per_second": contestant(asked.contestant).measure(asked)}))
