"""Where numbers of the pages come from that stand in no report: by the page's folder, "front" for the front page.

A key is the number, or "number of folder" for one in a row or paragraph that names a report of that folder. A source is
arithmetic, whose numbers with a point stand in reports of the page, and may ask committed files:

- `at(file, key, ...)`: a value of a JSON file; `told(file, number)`: a number that a text has;
- `ends(experiment, variant)`: the last validation losses of its seeds;
- `lead(experiment, variant, baseline, metric)`: mean and half-width of the paired differences.
"""

import json
import math
import re
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t

ROOT = Path(__file__).parents[2]
GIVEN = "no measurement: a setting, a definition, a published constant, a line of `make demo`, or read off a picture"

TIMES = (
    'at("experiments/06_scaling/largest/results.json", "cells", 0, "training_flops") / '
    'max(cell["training_flops"] for cell in at("experiments/06_scaling/grid/results.json", "cells"))'
)
LR_RANGE = "experiments/04_experiments/lr_range/lr_range.json"
LOAD = "benchmarks/results/serving/load/results.json"

SOURCES = {
    "01_configuration": {
        "121,344": "12 * 13 * 768 + 2 * 768",
        "256": GIVEN,
        "1,024": "2**10",
        "0.13": "(112 + 23) / 1024",
    },
    "02_data": {
        "1.05": "8192 * 128 / 1e6",
        "105": "8192 * 128 / 1e4",
        "0.79": "4 * 12 * 128**2 / 1e6",
        "65,536": "2**16",
        "180": "64 * 2.794",
        "0.014": "2.5641 - 2.5501",
        "32,768": GIVEN,
        "1,024": GIVEN,
        "600": GIVEN,
        "2.115": GIVEN,
        "2.474": GIVEN,
    },
    "04_experiments": {
        "0.00054": f'at("{LR_RANGE}", "steepest")',
        "0.0045": f'at("{LR_RANGE}", "lowest")',
        "1.2": f'at("{LR_RANGE}", "diverged")',
        "0.1183": "2.4426 - 2.3243",
    },
    "05_architecture": {
        "2.28": 'ends("05_architecture/norm_place", "post-no-warmup")[0]',
        "3.33": 'at("experiments/05_architecture/norm_place/results.json", "cells", 33, "points", 47, 1)',
    },
    "06_scaling": {"0.73": "5.7328 - 5.0026", "2.4": TIMES},
    "07_improvements": {
        "0.095": 'told("experiments/07_improvements/ladder/report.md", "0.095")',
        "341": "8 / 3 * 128",
        "384": "6 * 64",
        "8.1": "4 * 3 * 128 * (384 - 8 / 3 * 128) / 806528 * 100",
    },
    "09_inference": {"255": "2**8 - 1"},
    "10_production": {
        "14.4": "0.02 * 30 * 24",
        "2.2": GIVEN,
        "220": GIVEN,
        "503": GIVEN,
        "2,048": GIVEN,
        "995.6": f'at("{LOAD}", "result", "totals", "rate_ok")',
        "47.6": f'at("{LOAD}", "result", "totals", "latency_ms", "mean")',
    },
    "12_experts": {
        "3.9": GIVEN,
        "3.5": GIVEN,
        "0.115": 'ends("12_experts/routing", "top-1")[0] - ends("12_experts/routing", "dense")[0]',
        "0.101": 'ends("12_experts/routing", "top-1")[1] - ends("12_experts/routing", "dense")[1]',
        "0.171": 'ends("12_experts/routing", "top-1")[2] - ends("12_experts/routing", "dense")[2]',
        "133": 'told("experiments/12_experts/routing/report.md", "132.8")',
        "164": 'told("experiments/12_experts/routing/report.md", "164.1")',
    },
    "13_alignment": {"220": GIVEN, "1,296": "6**4", "4,096": GIVEN},
    "experiments": {
        "2026": GIVEN,
    },
    "capstone": {
        "1.35": GIVEN,
        "135": GIVEN,
    },
    "front": {
        "2.4 of fit": TIMES,
        "0.5 of load": f'at("{LOAD}", "shares", 3, "gateway") / 1355 * 1000',
        "0.7 of load": f'at("{LOAD}", "shares", 0, "gateway") / 591 * 1000',
        "1.68 of results": "30416 / 18126",
        "1.31 of results": "4759 / 3638",
        "124 of results": GIVEN,
        "128 of heads": GIVEN,
        "8 of longer": GIVEN,
        "3.4 of balance": "2.35 + 1",
        "1.13 of balance": "0.13 + 1",
        "1.03 of balance": "0.03 + 1",
        "1,296 of frontier_exact": "6**4",
        "2.2 of pipeline": GIVEN,
        "0.8 of data_parallel": GIVEN,
        "52 of accumulation": "(9733 / 6390 - 1) * 100",
        "37 of compression": "4192.5081 / 11448 * 100",
        "21 of recompute": "3357.7106 / 15845.7383 * 100",
        "12.0 ± 2.7": 'lead("09_inference/weight_types", "int4-gptq", "int4", "val/perplexity")',
        "0.16 of cache_types": "7200 / 46080",
        "0.35 of batching_closed": "353.2 / 1000",
        "3.2 of batching_closed": "3200 / 1000",
        "2.2 of llava_design": GIVEN,
        "450 of llava": "150 + 300",
        "2.6 of results": "100 - 97.4",
    },
}


@cache
def _read(file: str) -> Any:
    return json.loads((ROOT / file).read_text(encoding="utf-8"))


def at(file: str, *keys: str | int) -> Any:
    """A value of a JSON file."""
    found = _read(file)
    for key in keys:
        found = found[key]
    return found


def told(file: str, digits: str) -> float:
    """A number that a text has."""
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"(?<![\d.,]){re.escape(digits)}(?![\d.,]*\d)", text), f"{file} does not tell {digits}"
    return float(digits.replace(",", ""))


def ends(experiment: str, variant: str, metric: str = "val/loss") -> list[float]:
    """A metric at the end of training, by seed."""
    cells = at(f"experiments/{experiment}/results.json", "cells")
    return [cell["final"][metric] for cell in cells if cell["variant"] == variant]


def lead(experiment: str, variant: str, baseline: str, metric: str) -> tuple[float, float]:
    """By how much a variant is lower, with the half-width of its 95% interval."""
    both = zip(ends(experiment, baseline, metric), ends(experiment, variant, metric), strict=True)
    leads = [there - here for there, here in both]
    return mean(leads), float(t.ppf(0.975, len(leads) - 1)) * stdev(leads) / math.sqrt(len(leads))


def worked_out(source: str) -> Any:
    """A source's value."""
    return eval(source, {"at": at, "told": told, "ends": ends, "lead": lead})
