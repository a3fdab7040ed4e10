"""Planted training curves of known sicknesses, as runs that `lightning-gpt diagnose` reads."""

from __future__ import annotations

import json
import math
import random

VOCABULARY = 65
SICKNESSES = {
    "a": "overfitting",
    "b": "healthy",
    "c": "rate_too_high",
    "d": "oscillating_loss",
    "e": "rate_too_low",
}
"""Folder of the curve -> what ails it."""


def planted_curve(kind: str, seed: int = 0) -> list[dict[str, float]]:
    """Rows of a metrics.jsonl: 60 points over 600 steps."""
    draw, rows, start = random.Random(seed), [], math.log(VOCABULARY)
    for step in range(10, 601, 10):
        done = step / 600
        loss, lr, ratio, noise = 1.6 + (start - 1.6) * math.exp(-6 * done), 3e-3, 3e-3, 0.02
        if kind == "overfitting":
            loss = 0.5 + (start - 0.5) * math.exp(-4 * done)
        elif kind == "rate_too_high":
            loss, lr, ratio, noise = (3.3 + 2.5 * done, 0.3, 0.4, 0.03)
        elif kind == "rate_too_low":
            loss, lr, ratio, noise = (start - 0.05 * done, 1e-6, 1e-6, 0.004)
        elif kind == "oscillating_loss":
            loss, noise = 2.5 + 0.4 * math.exp(-4 * done), 0.45
        row = {
            "step": step,
            "train/loss": loss + draw.gauss(0, noise),
            "optim/lr": lr,
            "optim/gradient_norm": 0.8 + 0.1 * draw.random(),
            "diagnosis/update_ratio": ratio,
        }
        if step % 60 == 0:
            row["val/loss"] = loss + 0.05 + (2.2 * max(0.0, done - 0.3) if kind == "overfitting" else 0.0)
        rows.append(row)
    return rows


def curve_files() -> dict[str, str]:
    """curves/a/metrics.jsonl and its siblings."""
    return {
        f"curves/{name}/metrics.jsonl": "".join(f"{json.dumps(row)}\n" for row in planted_curve(kind, seed))
        for seed, (name, kind) in enumerate(SICKNESSES.items())
    }
