"""The service under load, overload, a soak, dying workers and a drain: python -m benchmarks.serving SCENARIO MODEL.

Everything runs on this machine: workers on core 0, gateway and load generator (`lightning-gpt load`) on core 1. Results
go to benchmarks/results/serving/SCENARIO: report.md, report.png of the generator, results.json.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import markdown_table, write_text
from benchmarks.serving.running import Running, Shares, load

RESULTS = Path(__file__).parents[1] / "results" / "serving"
STAIRS = (600, 1000, 1200, 1400, 1600, 1800, 2200)
STAIR_S = 15


def settings(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """service.yaml of the demo model on core 0, with the gateway on core 1."""
    version = {"path": args.model, "dtype": "bfloat16", "cpus": [0], "threads": 1, "max_running": 128}
    version |= {"standby": more.pop("standby", 0)}
    return {"port": args.port, "cpus": [1], "models": [{"name": "demo", "versions": [version]}], **more}


def scenario_load(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The ceiling by a staircase, then a minute at the rate that is asked for."""
    with Running(folder / "stairs", settings(args)) as service:
        steps = ",".join(f"{rate}:{STAIR_S}" for rate in STAIRS)
        generator, _ = load(folder / "stairs", service.url, "--steps", steps, "--cpu", 1)
        time.sleep(1.0)
        shares, found = Shares(service, generator.pid), []
        for _ in STAIRS:
            time.sleep(STAIR_S)
            found.append(shares.measured() if generator.poll() is None else found[-1])
        generator.wait()
        stairs = json.loads((folder / "stairs" / "results.json").read_text())["steps"]
        generator, command = load(
            folder, service.url, "--rate", args.rate, "--duration", args.seconds, "--cpu", 1, "--watch_pid",
            service.process.pid,
        )  # fmt: skip
        time.sleep(2.0)
        shares = Shares(service, generator.pid)
        time.sleep(args.seconds - 4)
        minute = shares.measured()
        generator.wait()
    rows = [
        [
            f"{step['rate_from']:,.0f}",
            f"{step['rate_ok']:,.0f}",
            f"{step['latency_ms']['p50']:,.1f}",
            f"{step['latency_ms']['p99']:,.1f}",
            f"{step['error_rate']:.3%}",
            *(f"{share[name]:.0%}" for name in ("worker", "gateway", "generator")),
        ]
        for step, share in zip(stairs, found)
    ]
    head = ["requests/s", "right/s", "P50 ms", "P99 ms", "errors", "worker", "gateway", "generator"]
    totals = json.loads((folder / "results.json").read_text())["totals"]
    text = (
        f"{totals['rate_ok']:,.0f} right answers a second for {args.seconds} s, P50 {totals['latency_ms']['p50']:.1f} "
        f"ms, P99 {totals['latency_ms']['p99']:.1f} ms, errors {totals['error_rate']:.3%} (aim: {args.rate:,.0f}, P99 "
        f"below 500 ms, below 0.1%). Of a core: worker {minute['worker']:.0%}, gateway {minute['gateway']:.0%}, "
        f"generator {minute['generator']:.0%}; gateway and generator share core 1.\n\n"
        f"The staircase, {STAIR_S} s a step, 16 new tokens a request, not streamed:\n\n{markdown_table(head, rows)}"
    )
    return {"command": command, "text": text, "stairs": stairs, "shares": found, "minute_shares": minute}


def scenario_overload(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Goodput at the highest rate that holds, and at three times of it."""
    guarded = {"max_wait_s": args.max_wait, "max_queue": 1024, "timeout_s": 10}
    with Running(folder, settings(args, limits=guarded)) as service:
        watch = ("--cpu", 1, "--watch_pid", service.process.pid, "--connections", 2048)
        generator, _ = load(folder / "full", service.url, "--rate", args.rate, "--duration", 30, *watch)
        generator.wait()
        rate = 3 * args.rate
        generator, command = load(folder, service.url, "--rate", rate, "--duration", args.seconds, *watch)
        generator.wait()
    full = json.loads((folder / "full" / "results.json").read_text())
    over = json.loads((folder / "results.json").read_text())
    rows = [
        [
            name,
            f"{one['totals']['rate_sent']:,.0f}",
            f"{one['totals']['goodput']:,.0f}",
            f"{one['totals']['latency_ms']['p50']:,.1f}",
            f"{one['totals']['latency_ms']['p99']:,.1f}",
            ", ".join(f"{kind}: {count:,}" for kind, count in one["errors"].items()) or "none",
        ]
        for name, one in (("capacity", full), ("three times", over))
    ]
    head = ["load", "sent/s", "goodput/s", "P50 ms", "P99 ms of answers", "refused and failed"]
    share = over["totals"]["goodput"] / full["totals"]["goodput"]
    text = (
        f"Goodput (right answers within 500 ms) at three times the capacity is {share:.0%} of that at capacity (aim "
        f"90%).\n\n{markdown_table(head, rows)}\n\n{memory_line(over)}"
    )
    return {"command": command, "text": text, "full": full["totals"], "share": share}


def memory_line(result: dict[str, Any]) -> str:
    """How the watched processes' memory went."""
    sizes = [one["rss_bytes"] / 2**20 for one in result["watched"]]
    if len(sizes) < 8:
        return ""
    start, end = sizes[len(sizes) // 4], sizes[-2]
    return (
        f"Memory of gateway and workers: {start:,.1f} MiB after a quarter of the time, {end:,.1f} MiB at the end "
        f"({end - start:+.1f})."
    )


def scenario_soak(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A long run at a steady rate, a part of it streamed, prompts of mixed lengths."""
    with Running(folder, settings(args)) as service:
        generator, command = load(
            folder, service.url, "--rate", args.rate, "--duration", args.seconds, "--cpu", 1, "--watch_pid",
            service.process.pid, "--stream", 0.2, "--max_tokens", "8-24", "--warmup", 20,
        )  # fmt: skip
        generator.wait()
    result = json.loads((folder / "results.json").read_text())
    totals, sizes = result["totals"], [one["rss_bytes"] / 2**20 for one in result["watched"]]
    tenth = max(len(sizes) // 10, 1)
    means = [sum(part) / len(part) for part in (sizes[i : i + tenth] for i in range(0, tenth * 10, tenth))]
    text = (
        f"{totals['requests']:,} requests in {args.seconds / 60:.0f} minutes, {totals['ok']:,} right, errors "
        f"{totals['error_rate']:.4%}, P50 {totals['latency_ms']['p50']:.1f} ms, P99 {totals['latency_ms']['p99']:.1f} "
        f"ms.\n\nMemory of gateway and worker, mean of each tenth, MiB: {', '.join(f'{one:,.1f}' for one in means)}."
    )
    return {"command": command, "text": text, "memory_mib": means}


def scenario_chaos(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A worker is killed every ten seconds, answers are compared with those of before; then a drain under load."""
    draw, kills = random.Random(0), 0
    guarded = {"limits": {"timeout_s": 30}, "drain_delay_s": 1.0}
    service = Running(folder, settings(args, standby=1, **guarded))
    before = service.gateway.memory_info().rss, service.gateway.num_fds()
    generator, command = load(
        folder, service.url, "--rate", args.rate, "--duration", args.seconds, "--cpu", 1, "--check", "true",
        "--watch_pid", service.process.pid, "--temperature", 0,
    )  # fmt: skip
    end = time.monotonic() + args.seconds
    while time.monotonic() < end - 10:
        time.sleep(10)
        victims = service.workers()
        if victims:
            draw.choice(victims).send_signal(signal.SIGKILL)
            kills += 1
    generator.wait()
    result = json.loads((folder / "results.json").read_text())
    deaths = len(service.events("worker_died"))
    time.sleep(10)
    left = service.workers()
    after = service.gateway.memory_info().rss, service.gateway.num_fds()
    drain = folder / "drain"
    generator, drain_command = load(drain, service.url, "--rate", args.rate, "--duration", 12, "--cpu", 1)
    time.sleep(6)
    status = service.stop()
    generator.wait()
    orphans = [one.pid for one in left if psutil.pid_exists(one.pid)]
    drained = json.loads((drain / "results.json").read_text())
    refused = {kind: count for kind, count in drained["errors"].items() if "refused" in kind}
    dropped = {kind: count for kind, count in drained["errors"].items() if kind not in refused}
    totals = result["totals"]
    text = (
        f"{kills} workers were killed in {args.seconds} s ({deaths} deaths seen) under {args.rate:g} requests/s: "
        f"{totals['ok']:,} of {totals['requests']:,} answered right, availability {totals['availability']:.4%} (aim "
        f"99.9%), wrong texts {totals['wrong']}, failures "
        f"{', '.join(f'{kind}: {count}' for kind, count in result['errors'].items()) or 'none'}; P50 "
        f"{totals['latency_ms']['p50']:.1f} ms, P99 {totals['latency_ms']['p99']:,.0f} ms. Afterwards {len(left)} "
        f"workers live; the gateway's memory went from {before[0] / 2**20:.0f} to {after[0] / 2**20:.0f} MiB, its open "
        f"files from {before[1]} to {after[1]}.\n\nDrain: SIGTERM in the "
        f"middle of {args.rate:g} requests/s: {drained['totals']['ok']:,} answered right, dropped after they were "
        f"sent: {dropped or 'none'}; refused connections once the door was closed: {sum(refused.values()):,}; exit "
        f"status {status}, workers left behind: {len(orphans)}."
    )
    return {
        "command": command,
        "drain_command": drain_command,
        "text": text,
        "kills": kills,
        "drain": drained["totals"],
    }


SCENARIOS: dict[str, tuple[Callable[..., dict[str, Any]], float, float]] = {
    "load": (scenario_load, 1000, 60),
    "overload": (scenario_overload, 1500, 60),
    "soak": (scenario_soak, 800, 600),
    "chaos": (scenario_chaos, 300, 120),
}
"""Name -> function, requests a second, seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("model", nargs="?", default="models/shakespeare", help="the demo's, exported")
    parser.add_argument("--rate", type=float, help="requests a second")
    parser.add_argument("--seconds", type=int)
    parser.add_argument(
        "--max_wait", type=float, default=0.1, help="seconds; requests that would wait longer are refused"
    )
    parser.add_argument("--port", type=int, default=0, help="for a Prometheus that looks on; 0 = any free one")
    args = parser.parse_args()
    run, rate, seconds = SCENARIOS[args.scenario]
    args.rate, args.seconds = args.rate or rate, args.seconds or int(seconds)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found = run(args, folder)
        place = RESULTS / args.scenario
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "report.png", place / "report.png")
        stairs = folder / "stairs" / "results.json"
        if stairs.exists():  # what `lightning-gpt plan serving --load` reads
            write_text(place / "stairs.json", stairs.read_text(encoding="utf-8").replace(str(folder), "OUT"))
        result = json.loads((folder / "results.json").read_text().replace(str(folder), "OUT"))
    found["command"] = [word.replace(str(folder), "OUT") for word in found["command"]]
    asked = " ".join(["python -m benchmarks.serving", *sys.argv[1:]])
    text = (
        f"# The service: {args.scenario}\n\n{run.__doc__}\n\n`{asked}`; {machine_line(machine)}\n\n{found.pop('text')}"
        "\n\n![latencies, rates, errors](report.png)\n"
    )
    content = {"machine": machine, **found, "result": result}
    write_text(place / "results.json", json.dumps(content) + "\n")  # a value a second: nobody reads its lines
    write_text(place / "report.md", text)
    print(text)


if __name__ == "__main__":
    main()
