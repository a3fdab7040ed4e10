"""The reward that a policy reaches at the KL divergence it spends: PPO, GRPO, DPO and others on one picture.

    python experiments/13_alignment/frontier.py exact          # 1,296 texts: against the exact frontier
    python experiments/13_alignment/frontier.py shakespeare    # sentiment of a small language model's speeches

After Rafailov et al. (2023), figure 2. Every point is a `lightning-gpt fit` of a configuration with another strength of
the KL penalty and another seed; finished points are kept in runs/frontier, so a killed command goes on. Writes
experiments/13_alignment/frontier_<world>/ with results.json, frontier.png and report.md.
"""

import json
import os
import platform
import statistics
import sys
from pathlib import Path

import torch
import yaml
from frontier_report import write_report
from frontier_worlds import WORLDS, Point

from lightning_gpt.cli import main as lightning_gpt

HERE = Path(__file__).parent
RUNS = Path("runs/frontier")


def settings_of(world, point: Point, seed: int, directory: Path) -> dict:
    """The settings of one run."""
    return {
        "seed_everything": seed,
        "run": {"name": f"seed_{seed}", "dir": str(directory), "tensorboard": False},
        "model": {
            "class_path": f"lightning_gpt.tasks.{point.task}",
            "init_args": {"init_from": world.reference, "optimizer": world.optimizer(point), **point.model},
        },
        "data": {"class_path": f"lightning_gpt.data.{point.data}", "init_args": world.data(point)},
        "samples": {"tokens": 0},
        "progress": {"plain_every": 3600.0},
        "curve": {"enabled": False},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "precision": world.precision,
            "max_steps": point.steps,
            "log_every_n_steps": 10,
        },
    }


def run_point(world, point: Point, seed: int) -> dict[str, float]:
    """KL and reward of one trained policy; from disk when it has been trained already."""
    directory = RUNS / world.name / point.label.replace(" ", "_")
    kept = directory / f"seed_{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"seed_{seed}.yaml"
    path.write_text(yaml.safe_dump(settings_of(world, point, seed, directory)))
    lightning_gpt(["fit", "-c", str(path)])
    newest = max((directory / f"seed_{seed}").glob("version_*"), key=lambda p: int(p.name.split("_")[1]))
    found = world.measure(newest / "checkpoints" / "last.ckpt")
    temporary = kept.with_suffix(".tmp")
    temporary.write_text(json.dumps(found))
    os.replace(temporary, kept)
    return found


def main() -> None:
    """Runs what is missing, then writes the report."""
    if len(sys.argv) != 2 or sys.argv[1] not in WORLDS:
        sys.exit(f"usage: python experiments/13_alignment/frontier.py {{{','.join(WORLDS)}}}")
    world = WORLDS[sys.argv[1]]()
    world.prepare()
    machine = platform.processor() or platform.machine()
    hardware = f"{machine}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    found: dict[Point, list[dict[str, float]]] = {point: [] for point in world.points}
    for count, seed in enumerate(world.seeds, start=1):  # a run that is stopped has whole pictures of fewer seeds
        for number, point in enumerate(found):
            one = run_point(world, point, seed)
            found[point].append(one)
            print(
                f"seed {seed}, {number + 1}/{len(found)} {point.label}: KL {one['kl']:.3f}, reward {one['reward']:.3f}",
                file=sys.stderr,
                flush=True,
            )
        rows = []
        for point, runs in found.items():
            means = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
            rows.append(
                {"method": point.method, "knob": point.knob, "seeds": list(world.seeds[:count]), "runs": runs, **means}
            )
        write_report(HERE / f"frontier_{world.name}", world, rows, hardware)


if __name__ == "__main__":
    main()
