"""Predicted and measured steps and memory of two processes of this machine: python -m benchmarks.parallel_plan.

The link is measured first: all-reduces of gloo over loopback, from 4 KiB to 64 MiB, give the alpha and beta of
planning/interconnect.py. Then every network runs as `lightning-gpt fit` in processes of its own, one thread each:

- alone, and as two runs beside each other that share nothing: what a step computes while the other core is busy;
- as two processes of one run, by DDP and by FSDP.

`lightning-gpt plan parallel`'s model foretells the last two from the runs that share nothing and the link.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
import yaml

from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import markdown_table, write_json, write_text
from benchmarks.request import ROOT
from lightning_gpt.data.prepare import prepare
from lightning_gpt.planning.accelerators import Machine, find_accelerator
from lightning_gpt.planning.interconnect import LINKS, Link
from lightning_gpt.planning.memory_job import TrainingJob
from lightning_gpt.planning.memory_overhead import CURVE, ENDED
from lightning_gpt.planning.parallel_layout import Cluster, Layout
from lightning_gpt.planning.parallel_memory import memory_of
from lightning_gpt.planning.parallel_step import StepTime, predict

RESULTS = ROOT / "benchmarks/results/parallel_plan"
SIZES = [4 << (2 * k) for k in range(5, 13)]
"""Bytes of the messages: 4 KiB to 64 MiB."""
CASES: dict[str, tuple[dict, int, int]] = {
    "0.8 M, 12 x 64": ({"n_layer": 4, "n_head": 4, "n_embd": 128}, 12, 64),
    "10.7 M, 4 x 256": ({"n_layer": 6, "n_head": 6, "n_embd": 384}, 4, 256),
    "10.7 M, 12 x 256": ({"n_layer": 6, "n_head": 6, "n_embd": 384}, 12, 256),
    "25.3 M, 2 x 256": ({"n_layer": 8, "n_head": 8, "n_embd": 512}, 2, 256),
}
"""name -> (network, windows of a process, tokens of a window)."""
STRATEGIES = {"DDP": "ddp", "FSDP": "fsdp"}
WARMUP, STEPS, ROUNDS = 2, 4, 3


def measure_link(repeats: int = 15) -> list[tuple[int, float, float]]:
    """(bytes, seconds of an all-reduce, of an all-gather) between two processes, the quickest of some."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_exchange, args=(folder, repeats), nprocs=2)
        return [tuple(row) for row in json.loads(Path(folder, "link.json").read_text())]


def _exchange(rank: int, folder: str, repeats: int) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = []
    for size in SIZES:
        tensor = torch.ones(size // 4)
        part = torch.ones(size // 8)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats + 2):
            for seconds, operation in zip(times, ("reduce", "gather")):
                torch.distributed.barrier()
                begin = time.perf_counter()
                if operation == "reduce":
                    torch.distributed.all_reduce(tensor)
                else:
                    torch.distributed.all_gather_into_tensor(tensor, part)
                seconds.append(time.perf_counter() - begin)
        rows.append((size, *(min(one[2:]) for one in times)))
    if rank == 0:
        Path(folder, "link.json").write_text(json.dumps(rows))
    torch.distributed.destroy_process_group()


def fit_link(rows: list[tuple[int, float, float]]) -> Link:
    """Least squares of the relative error: an all-reduce of two takes 2 alpha + bytes / bandwidth."""
    sizes, seconds = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    matrix = np.stack([2 / seconds, sizes / seconds], axis=1)
    alpha, inverse = np.linalg.lstsq(matrix, np.ones(len(rows)), rcond=None)[0]
    return replace(LINKS["loopback"], peak=1 / inverse, reached=1.0, latency=max(alpha, 1e-6))


def run(work: Path, name: str, strategy: str | None = None, beside: int = 1) -> list[dict]:
    """Seconds of some steps and peak memory of runs beside each other, of one process or of two by configs/trainer/
    <strategy>.yaml; of each what the last rank to end has written."""
    network, rows, tokens = CASES[name]
    processes = []
    for number in range(beside):
        out = work / f"cost_{number}.json"
        out.unlink(missing_ok=True)
        cost = {"path": str(out), "warmup": WARMUP, "steps": STEPS}
        settings = {
            "run": {"name": f"run_{number}", "dir": str(work / "runs"), "tensorboard": False},
            "model": {
                "class_path": "lightning_gpt.tasks.Pretraining",
                "init_args": {"config": network, "optimizer": {"class_path": "lightning_gpt.optim.AdamW"}},
            },
            "data": {
                "class_path": "lightning_gpt.data.TokenData",
                "init_args": {"data_dir": str(work / "corpus"), "batch_size": rows, "block_size": tokens},
            },
            "trainer": {
                "accelerator": "cpu",
                "devices": 2 if strategy else 1,
                "precision": "32-true",
                "max_steps": WARMUP + STEPS + 5,
                "limit_val_batches": 0,
                "callbacks": [{"class_path": "lightning_gpt.callbacks.measurement.StepCost", "init_args": cost}],
            },
            "samples": {"tokens": 0},
            "curve": {"enabled": False},
        }
        config = work / f"run_{number}.yaml"
        config.write_text(yaml.safe_dump(settings))
        trainer = ["-c", f"configs/trainer/{strategy}.yaml"] if strategy else []
        command = [sys.executable, "-m", "lightning_gpt", "fit", *trainer, "-c", str(config)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
        processes.append((subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True), out))
    found = []
    for process, out in processes:
        _, said = process.communicate(timeout=900)
        if not out.exists():
            raise SystemExit(f"{name}, {strategy}: no measurement\n{said[-2000:]}")
        found.append(json.loads(out.read_text()))
    return found


def job(work: Path, name: str) -> TrainingJob:
    """The run as the planner takes it."""
    from lightning_gpt.data.corpus_meta import CorpusMeta
    from lightning_gpt.nn import GPTConfig

    network, rows, tokens = CASES[name]
    vocabulary = CorpusMeta.load(str(work / "corpus")).tokenizer.vocab_size
    config = GPTConfig(vocab_size=vocabulary, block_size=tokens, **network)
    return TrainingJob(config, rows, tokens, val_batch_size=0, bucket_view=True)


def layout(name: str, strategy: str) -> Layout:
    """Two processes."""
    _, rows, _ = CASES[name]
    replicas, shard = (2, 1) if strategy == "ddp" else (1, 2)
    return Layout(strategy, replicas, shard, 1, rows, 1)


def foretold(base: TrainingJob, spread: Layout, step_seconds: float, link: Link) -> StepTime:
    """The step of two processes, from that of one and the link."""
    one = Layout("ddp", 1, 1, 1, spread.micro_batch, 1)

    def cluster(devices: int, peak: float) -> Cluster:
        accelerator = replace(find_accelerator("cpu"), peak_flops=peak)
        return Cluster(Machine(accelerator, devices, 1.0), devices, link, link, 1)

    # The rate of computing that makes a step of one process what was measured.
    reference = predict(base, one, cluster(1, 1e11))
    peak = 1e11 * reference.compute / (step_seconds - reference.optimizer)
    return predict(base, spread, cluster(2, peak), spread=0.0)


def measure(work: Path, name: str, link: Link, rounds: int) -> dict:
    """All runs of one network, in turn and in rounds, with the forecasts."""
    base = job(work, name)
    seconds: dict[str, list[float]] = {"alone": [], "pair": [], **{title: [] for title in STRATEGIES}}
    most = dict.fromkeys(STRATEGIES, 0)
    for _ in range(rounds):
        seconds["alone"] += run(work, name)[0]["seconds"]
        both = run(work, name, beside=2)
        seconds["pair"].append(sum(min(one["seconds"]) for one in both) / 2)
        for title, strategy in STRATEGIES.items():
            (cost,) = run(work, name, strategy)
            seconds[title] += cost["seconds"]
            most[title] = max(most[title], cost["peak_bytes"])
    alone, pair = min(seconds["alone"]), min(seconds["pair"])
    row: dict = {"name": name, "alone": alone, "pair": pair, "seconds": seconds}
    for title, strategy in STRATEGIES.items():
        spread = layout(name, strategy)
        step = foretold(base, spread, pair, link)
        row[title] = one = {
            "measured": min(seconds[title]),
            "foretold": step.total,
            "from_alone": foretold(base, spread, alone, link).total,
            "communication": step.communication,
            "measured_bytes": most[title],
            "foretold_bytes": memory_of(base, spread).total - ENDED - CURVE,
        }
        print(
            f"{name}, {title}: {one['foretold']:.3f} s foretold, {one['measured']:.3f} s measured "
            f"({one['foretold'] / one['measured'] - 1:+.1%}); memory {one['foretold_bytes'] / 2**20:.0f} and "
            f"{one['measured_bytes'] / 2**20:.0f} MiB",
            flush=True,
        )
    return row


def report(rows: list[dict], points: list[tuple[int, float, float]], link: Link, load: list[float]) -> str:
    """Markdown."""
    machine = describe_machine()
    steps, memory = [], []
    for row in rows:
        for title in STRATEGIES:
            one = row[title]
            measured, step = one["measured"], one["foretold"]
            seconds = [row["alone"], row["pair"], one["communication"], step, measured]
            errors = [step / measured - 1, one["from_alone"] / measured - 1]
            kept = [row["pair"] / measured, row["pair"] / step]
            cells = [f"{x:.3f}" for x in seconds] + [f"{x:+.1%}" for x in errors] + [f"{x:.1%}" for x in kept]
            steps.append([f"{row['name']}, {title}", *cells])
            error = one["foretold_bytes"] / one["measured_bytes"] - 1
            sizes = [f"{one[key] / 2**20:,.0f}" for key in ("foretold_bytes", "measured_bytes")]
            memory.append([f"{row['name']}, {title}", *sizes, f"{error:+.1%}"])
    missed = [abs(row[title]["foretold"] / row[title]["measured"] - 1) for row in rows for title in STRATEGIES]
    bytes_errors = [
        abs(row[title]["foretold_bytes"] / row[title]["measured_bytes"] - 1) for row in rows for title in STRATEGIES
    ]
    sent = []
    for size, reduce, gather in points:
        model = 2 * link.latency + size / link.bandwidth
        error, gathered = model / reduce - 1, link.latency + size / 2 / link.bandwidth
        times = [f"{1e3 * x:.3f}" for x in (reduce, model, gather, gathered)]
        sent.append([f"{size:,}", *times[:2], f"{error:+.0%}", *times[2:]])
    busy = ", ".join(f"{one:.1f}" for one in load)
    return "\n\n".join(
        [
            "# Steps and memory of two processes: foretold and measured",
            "`python -m benchmarks.parallel_plan`",
            machine_line(machine),
            f"Load of the machine (1 minute's mean, two cores) before the link and before each network: {busy}. From 1 "
            "on, other work was running beside, and the times are worth little.",
            "## The link",
            f"gloo over loopback, two processes: alpha {link.latency * 1e6:.0f} us, "
            f"bandwidth {link.bandwidth / 1e9:.2f} GB/s.",
            markdown_table(
                ["bytes", "all-reduce, ms", "model, ms", "error", "all-gather, ms", "model, ms"],
                sent,
            ),
            "## Steps",
            f"Seconds, the quickest of {STEPS} steps after {WARMUP} in rounds that take turns: what else runs on the "
            "machine only adds. *Alone*: one process; *beside*: the same while another one, with which it shares "
            "nothing, keeps the other core busy. The forecast starts from *beside* and the link, and takes no "
            "communication as hidden: the cores that compute also copy. Efficiency is *beside* over the step of two.",
            markdown_table(
                [
                    *("run", "alone", "beside", "sent", "foretold", "measured", "error", "error from alone"),
                    *("efficiency", "foretold"),
                ],
                steps,
            ),
            f"Mean error {sum(missed) / len(missed):.1%}, largest {max(missed):.1%}.",
            "## Memory",
            "Largest resident memory of a rank, MiB, against `lightning-gpt plan parallel`'s, without what the end of "
            "a run adds (these runs leave before it).",
            markdown_table(["run", "foretold", "measured", "error"], memory),
            f"Mean error {sum(bytes_errors) / len(bytes_errors):.1%}, largest {max(bytes_errors):.1%}.",
        ]
    )


def main() -> None:
    """Measures the link and every network, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(CASES), help="names of networks; default: all")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of all runs of a network")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    load = [os.getloadavg()[0]]
    points = measure_link()
    link = fit_link(points)
    print(f"loopback: {link.latency * 1e6:.0f} us, {link.bandwidth / 1e9:.2f} GB/s", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="parallel_plan_") as scratch:
        work = Path(scratch)
        prepare("shakespeare", "char", out=str(work / "corpus"), quiet=True)
        for name in options.only:
            load.append(os.getloadavg()[0])
            rows.append(measure(work, name, link, options.rounds))
            content = {
                "machine": describe_machine(),
                "load": load,
                "rounds": options.rounds,
                "link": {"latency": link.latency, "bandwidth": link.bandwidth, "points": points},
                "runs": rows,
            }
            write_json(options.out / "results.json", content)
            write_text(options.out / "report.md", report(rows, points, link, load) + "\n")
    print(f"\n{(options.out / 'report.md').read_text()}\nwritten: {options.out}")


if __name__ == "__main__":
    main()
