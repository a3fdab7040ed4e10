"""The service beside other servers, by concurrency: python -m benchmarks.serving.peers MODEL.

The same model directory, bfloat16, one thread of computation each; closed loops of 1 to 64 clients that each ask for 64
new tokens, greedy, behind prompts of 32 words, and ask again once they have their answer. The generator is on core 1,
with our gateway; a peer's processes may use both cores. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import markdown_table, write_json, write_report
from benchmarks.serving.running import Running, load, wait_ready

RESULTS = Path(__file__).parents[1] / "results" / "serving" / "peers.json"
CLIENTS = (1, 4, 16, 64)
SECONDS = 20
PORT = 18200


class Peer:
    """Another server as a process.

    Args:
        command: that starts it.
        ready: path that answers 200 when it serves.
        environment: variables beside our own.
    """

    def __init__(self, command: list[str], ready: str, environment: dict[str, str], output: Path) -> None:
        self.url = f"http://127.0.0.1:{PORT}"
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        wait_ready(self.url + ready, self.process, 400)

    def stop(self) -> None:
        """Ends it and its children."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def vllm(model: Path, python: str, output: Path) -> Peer:
    """vLLM's CPU build."""
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "demo",
        "--port", str(PORT), "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "1024",
        "--max-num-seqs", "64", "--disable-log-stats",
    ]  # fmt: skip
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "0",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
    }
    return Peer(command, "/health", environment, output)


def transformers(model: Path, python: str, output: Path) -> Peer:
    """transformers' own server, with its continuous batching."""
    command = [
        str(Path(python).parent / "transformers"), "serve", str(model), "--port", str(PORT), "--dtype", "bfloat16",
        "--device", "cpu", "--continuous-batching",
    ]  # fmt: skip
    return Peer(command, "/health", {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, output)


def ours(model: Path, folder: Path) -> Running:
    """The service, its worker on core 0."""
    version = {"path": str(model), "dtype": "bfloat16", "cpus": [0], "threads": 1, "max_running": 64}
    return Running(folder, {"cpus": [1], "models": [{"name": "demo", "versions": [version]}]})


def measure(url: str, folder: Path, name: str, ignore_eos: bool = True) -> list[dict[str, Any]]:
    """Totals for each number of clients.

    Args:
        ignore_eos: whether the server knows it; one that does not may give shorter answers, whose tokens are counted.
    """
    found = []
    for clients in CLIENTS:
        place = folder / f"{clients}"
        options = ("--concurrency", clients, "--duration", SECONDS, "--warmup", 3, "--words", 32, "--max_tokens", 64)
        process, _ = load(
            place, url, *options, "--ignore_eos", ignore_eos, "--cpu", 1, "--timeout", 120, "--model", name
        )  # fmt: skip
        process.wait()
        totals = json.loads((place / "results.json").read_text())["totals"]
        found.append({"clients": clients, **totals})
        print(name, clients, f"{totals['tokens_per_second']:,.0f} tokens/s", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vllm-cpu")
    parser.add_argument("--transformers", metavar="PYTHON", default=sys.executable)
    parser.add_argument("--servers", default="ours,vllm,transformers", help="others keep what was measured before")
    args = parser.parse_args()
    model, asked = args.model.resolve(), args.servers.split(",")
    servers: dict[str, list[dict[str, Any]]] = {}
    if RESULTS.exists() and set(asked) != {"ours", "vllm", "transformers"}:
        servers = json.loads(RESULTS.read_text())["servers"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "ours" in asked:
            with ours(model, folder / "ours") as service:
                servers["ours"] = measure(service.url, folder / "ours", "demo")
            write_json(RESULTS, {"servers": servers})
        for name, start, python in (("vllm", vllm, args.vllm), ("transformers", transformers, args.transformers)):
            if name not in asked:
                continue
            if python is None or shutil.which(python) is None:
                print(f"{name} is left out: give --{name} PYTHON", file=sys.stderr)
                continue
            (folder / name).mkdir()
            try:
                peer = start(model, python, folder / name / "log.txt")
            except RuntimeError as error:
                print(f"{name} is left out: {error}\n{(folder / name / 'log.txt').read_text()[-800:]}", file=sys.stderr)
                continue
            try:
                known = name != "transformers"
                servers[name] = measure(peer.url, folder / name, "demo" if known else str(model), known)
                write_json(RESULTS, {"servers": servers})
            finally:
                peer.stop()
    machine = describe_machine()
    head = ["clients", *(f"{name}, {what}" for name in servers for what in ("tokens/s", "P50 ms", "P99 ms"))]
    rows = []
    for place, clients in enumerate(CLIENTS):
        row = [str(clients)]
        for found in servers.values():
            one = found[place]
            times = one["latency_ms"]
            row += [f"{one['tokens_per_second']:,.0f}", *(f"{times[name] or 0:,.0f}" for name in ("p50", "p99"))]
        rows.append(row)
    best = [max(found[place]["tokens_per_second"] for name, found in servers.items() if name != "ours") for place in
            range(len(CLIENTS))] if len(servers) > 1 else []  # fmt: skip
    ratios = ", ".join(
        f"{servers['ours'][place]['tokens_per_second'] / other:.2f} at {CLIENTS[place]}"
        for place, other in enumerate(best)
    )
    text = (
        f"# The service beside other servers\n\n{__doc__.split(chr(10), 2)[2].strip()}\n\n"
        f"`python -m benchmarks.serving.peers {args.model}`; {machine_line(machine)}\n\n"
        f"{markdown_table(head, rows)}\n\n"
        f"Ours over the best peer, tokens/s: {ratios or 'no peer was there'}. 0: no answer ended in {SECONDS} s. "
        "transformers' server knows no ignore_eos, so that its answers may end earlier."
    )
    write_report(RESULTS, {"machine": machine, "servers": servers}, text)


if __name__ == "__main__":
    main()
