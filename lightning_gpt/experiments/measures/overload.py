"""What the service is worth while more is asked of it than it can do."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lightning_gpt.hub import save_model
from lightning_gpt.load.runner import run_load
from lightning_gpt.load.settings import LoadSettings
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.serving.process import ServiceProcess
from lightning_gpt.text.byte import byte_tokenizer


def measure_overload(
    shape: dict[str, Any],
    limits: dict[str, Any],
    rates: list[float],
    seconds: float,
    new: int,
    seed: int,
    max_running: int = 64,
    slo_ms: float = 500.0,
) -> Iterator[dict[str, float]]:
    """Rows over the rate at which requests arrive: goodput (right answers a second within the objective), all right
    answers a second, the P99 of the answers, and the share that was refused.

    A service of its own for every rate; its worker on one core where there are two, gateway and generator on another.

    Args:
        shape: fields of GPTConfig; the weights are random, a token is a byte.
        limits: of service.yaml: what protects the service.
        rates: requests a second, rising.
        seconds: of each rate.
        new: tokens of each answer.
        seed: of the arrivals and the weights.
        max_running: requests that the worker computes side by side.
        slo_ms: the objective for an answer.
    """
    torch.manual_seed(seed)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    worker, gateway = ([cores[0]], [cores[1]]) if len(cores) > 1 else (None, None)
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "model"
        save_model(model, GPT(GPTConfig(**{"vocab_size": 256, **shape})).to(torch.bfloat16), byte_tokenizer())
        version = {"path": str(model), "threads": 1, "cpus": worker, "max_running": max_running}
        settings = {"models": [{"name": "model", "versions": [version]}], "limits": limits, "cpus": gateway}
        for rate in rates:
            with ServiceProcess(Path(temporary), settings) as service:
                load = LoadSettings(
                    service.url,
                    rate=rate,
                    duration_s=seconds,
                    max_tokens=str(new),
                    slo_ms=slo_ms,
                    connections=4096,
                    cpu=None if gateway is None else gateway[0],
                    seed=seed,
                    timeout_s=max(seconds, 1.0),
                )
                totals = run_load(load).totals
            late = totals["latency_ms"]["p99"]
            yield {
                "step": rate,
                "load/goodput": totals["goodput"],
                "load/right": totals["rate_ok"],
                "latency/answer_p99_ms": late if late == late else 0.0,
                "load/refused": totals["error_rate"],
            }
