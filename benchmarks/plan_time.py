"""Foretold and measured wall time of whole runs: python -m benchmarks.plan_time.

The forecast is that of `lightning-gpt plan time`: a calibration run of 40 steps and one validation. Then the run
itself, `lightning-gpt fit` as a process of its own, is timed from its start to its end.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import markdown_table, write_report
from benchmarks.request import ROOT
from lightning_gpt.data.prepare import prepare
from lightning_gpt.planning.calibration import calibrate

CONFIG = "model.init_args.config."
CASES: dict[str, tuple[str, int, dict]] = {
    "nanoGPT's characters, 0.8 M": ("shakespeare_char_cpu_nanogpt", 400, {}),
    "the same in float32": ("shakespeare_char_cpu_nanogpt", 300, {"trainer.precision": "32-true"}),
    "the recipe with Muon": ("tinyshakespeare_fast", 300, {}),
    "a LLaMA of 1.1 M": ("llama_small", 150, {}),
    "a LLaMA of 0.2 M": (
        "llama_small",
        400,
        {f"{CONFIG}n_layer": 2, f"{CONFIG}n_head": 2, f"{CONFIG}n_embd": 64, "trainer.val_check_interval": 100},
    ),
    "four windows accumulated": (
        "shakespeare_char_cpu_nanogpt",
        120,
        {"trainer.accumulate_grad_batches": 4, "trainer.val_check_interval": 60},
    ),
}
"""name -> (configuration of configs/pretrain, optimizer steps, dotted settings)."""


def arguments(folder: Path, name: str) -> tuple[list[str], int, int]:
    """-c files of a case, its steps and its validations."""
    config, steps, dotted = CASES[name]
    corpus = "bpe:2048" if config == "llama_small" else "char"
    directory = prepare("shakespeare", corpus, folder / corpus.replace(":", "_"), quiet=True).directory
    interval = dotted.get("trainer.val_check_interval", steps)
    settings: dict = {"data": {"init_args": {"data_dir": str(directory)}}, "run": {"dir": str(folder), "name": "run"}}
    everything = {**dotted, "trainer.max_steps": steps, "trainer.val_check_interval": interval, "samples.tokens": 0}
    for key, value in everything.items():
        place = settings
        *parents, leaf = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    file = folder / "case.yaml"
    file.write_text(yaml.safe_dump(settings))
    files = [ROOT / "configs/pretrain" / f"{config}.yaml", ROOT / "configs/trainer/cpu.yaml", file]
    return [part for path in files for part in ("-c", str(path))], steps, steps // interval


def measure(folder: Path, name: str) -> dict:
    """{"predicted", "measured"} seconds of one case."""
    fit, steps, validations = arguments(folder, name)
    predicted = calibrate(fit).run_seconds(steps, validations)
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lightning_gpt", "fit", *fit], check=True, capture_output=True)
    return {"steps": steps, "predicted": predicted, "measured": time.perf_counter() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/plan_time.json")
    out = parser.parse_args().out
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in CASES:
            results[name] = found = measure(Path(folder), name)
            error = found["predicted"] / found["measured"] - 1
            print(f"{name}: {found['predicted']:.1f} s foretold, {found['measured']:.1f} s measured, {error:+.1%}")
    machine = describe_machine()
    rows = [
        [
            name,
            str(one["steps"]),
            f"{one['predicted']:.1f}",
            f"{one['measured']:.1f}",
            f"{one['predicted'] / one['measured'] - 1:+.1%}",
        ]
        for name, one in results.items()
    ]
    errors = [abs(one["predicted"] / one["measured"] - 1) for one in results.values()]
    text = (
        "# Wall time of whole runs, foretold and measured\n\n```\npython -m benchmarks.plan_time\n```\n\n"
        + markdown_table(["run", "steps", "foretold, s", "measured, s", "error"], rows)
        + f"\n\nLargest error {max(errors):.1%}. Process start, validations and end are in both. "
        + f"The forecast is that of `lightning-gpt plan time` from 40 steps.\n\n{machine_line(machine)}\n"
    )
    write_report(out, {"machine": machine, "runs": results}, text)


if __name__ == "__main__":
    main()
