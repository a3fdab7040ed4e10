"""fit.json: a fitted law with what it was fitted to, for `lightning-gpt plan scaling --law fit.json`."""

import difflib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_gpt.planning.laws import Allocation, Cost, ParametricLaw
from lightning_gpt.planning.scaling_fit import CONSTANTS, ScalingFit

FORMAT = 1
FIVE = ("E", "A", "B", "alpha", "beta")


def fit_content(fit: ScalingFit, command: str, metric: str) -> dict[str, Any]:
    """Plain values of a fit.

    Args:
        fit: the fit.
        command: what makes it again.
        metric: what the loss is.
    """
    law = fit.law
    rounded = [[_round(getattr(one, name)) for name in FIVE] for one in fit.samples]
    constants = {}
    for name in CONSTANTS:
        low, high = fit.interval(name)
        constants[name] = {"value": getattr(law, name), "low": _round(low), "high": _round(high)}
    points = [
        {**asdict(run), "fitted": not held, "predicted": _round(float(law.loss(size, run.tokens)))}
        for runs, held in ((fit.runs, False), (fit.held, True))
        for run, size in zip(runs, fit.sizes(runs))
    ]
    return {
        "format": FORMAT,
        "kind": "scaling law",
        "command": command,
        "metric": metric,
        "law": "L(N, D) = E + A / N^alpha + B / D^beta",
        "count": law.counts,
        "flops": {"factor": law.cost.factor, "power": law.cost.power, "of": "C = factor N^power D"},
        "source": law.source,
        "constants": constants,
        "interval": "95%, percentiles of fits of resampled runs",
        "residual_standard_deviation": _round(float(fit.residuals.std(ddof=min(5, len(fit.runs) - 1)))),
        "seed_standard_deviation": fit.seed_noise,
        "power_laws": [asdict(one) for one in fit.power_laws],
        "isoflop": asdict(fit.isoflop) if fit.isoflop else None,
        "predictions": [asdict(one) for one in fit.predictions],
        "warnings": fit.warnings,
        "points": points,
        "resamples": {"constants": FIVE, "values": rounded},
    }


def save_fit(content: dict[str, Any], path: Path) -> Path:
    """Writes fit.json, whole or not at all; the resamples are on one line."""
    text = json.dumps({**content, "resamples": "@"}, indent=1, ensure_ascii=False)
    text = text.replace('"@"', json.dumps(content["resamples"], separators=(",", ":")))
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def load_fit(path: Path) -> tuple[ParametricLaw, list[ParametricLaw]]:
    """The law of a fit.json, and its resampled fits.

    Raises:
        ValueError: no such file, or not one of ours.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"law: {path} has format {content['format']}, this version reads {FORMAT}: fit again")
        cost = Cost(content["flops"]["factor"], content["flops"]["power"])
        values = [content["constants"][name]["value"] for name in FIVE]
        law = ParametricLaw("own", *values, cost, content["count"], f"{path}: {content['source']}")
        samples = [ParametricLaw("resample", *row, cost, content["count"]) for row in content["resamples"]["values"]]
    except FileNotFoundError:
        raise ValueError(f"law: {path} does not exist") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"law: {path} is not a fit.json of lightning-gpt plan fit ({error!r})") from None
    return law, samples


def open_law(name: str) -> tuple[ParametricLaw | Allocation, list[ParametricLaw]]:
    """A published law by its name (no resamples), or one's own from a fit.json or the directory that holds it.

    Raises:
        ValueError: neither; names the nearest.
    """
    from lightning_gpt.planning.scaling_plan import LAWS

    if name in LAWS:
        return LAWS[name], []
    path = Path(name)
    if path.is_dir():
        path = path / "fit.json"
    if path.exists() or path.suffix == ".json":
        return load_fit(path)
    near = difflib.get_close_matches(name, LAWS, n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    raise ValueError(f"law={name} is neither a published law{hint} nor a fit.json; published: {', '.join(LAWS)}")


def _round(value: float) -> float:
    return float(f"{value:.6g}")
