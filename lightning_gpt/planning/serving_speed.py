"""What one replica serves, as it was measured: by `lightning-gpt load`, by `lightning-gpt bench`, or said by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Step:
    """A rate that stood for a while, and how the service did."""

    rate: float
    """Requests a second that were answered."""
    p50_s: float
    p99_s: float
    error_rate: float

    def holds(self, slo_s: float, most_errors: float) -> bool:
        """Whether it kept within the objective."""
        return self.p99_s <= slo_s and self.error_rate <= most_errors


@dataclass(frozen=True)
class ReplicaSpeed:
    """One replica."""

    throughput: float
    """Requests a second at saturation."""
    places: int
    """Requests computed at once: throughput x time of a request (Little, 1961), rounded down."""
    latency_p99_s: float
    """P99 of a request that does not wait."""
    tokens_out: float
    """New tokens of a request."""
    source: str
    steps: tuple[Step, ...] = ()
    """Measured rates, ascending; empty = the objective's rate follows from the queue alone."""

    @property
    def service_s(self) -> float:
        """Time of a request with all places taken."""
        return self.places / self.throughput

    def scaled(self, work: float) -> ReplicaSpeed:
        """The same replica with requests of `work` times the time each: all its rates fall, all its times grow."""
        steps = (replace(s, rate=s.rate / work, p50_s=s.p50_s * work, p99_s=s.p99_s * work) for s in self.steps)
        return replace(
            self,
            throughput=self.throughput / work,
            latency_p99_s=self.latency_p99_s * work,
            steps=tuple(steps),
        )

    def rate_within(self, slo_s: float, most_errors: float) -> float:
        """Largest measured rate that kept within the objective; without measurements, the throughput.

        Raises:
            ValueError: none did.
        """
        if not self.steps:
            return self.throughput
        rates = [step.rate for step in self.steps if step.holds(slo_s, most_errors)]
        if not rates:
            quickest = min(step.p99_s for step in self.steps)
            raise ValueError(
                f"slo={slo_s:g} s is kept at no measured rate (best P99 {quickest:.3g} s): measure lower rates, or "
                "allow more time"
            )
        return max(rates)

    def p99_at(self, rate: float) -> float:
        """P99 at a rate of one replica as far as it was measured: between the steps on a line, never below that of a
        lower rate, infinite beyond the highest. A full batch takes longer over each request than an empty one, which
        the queue's formula does not know."""
        if not self.steps:
            return self.latency_p99_s
        worst = np.maximum.accumulate([step.p99_s for step in self.steps])
        return float(np.interp(rate, [step.rate for step in self.steps], worst, right=math.inf))


def of_flags(tokens_per_s: float, latency_s: float, tokens_out: float) -> ReplicaSpeed:
    """From tokens a second of a full batch and the seconds that a request takes in it."""
    for name, value in (("tokens_per_s", tokens_per_s), ("latency", latency_s)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value:g} must be above 0")
    throughput = tokens_per_s / tokens_out
    places = max(int(throughput * latency_s + 1e-9), 1)
    source = f"{tokens_per_s:,.10g} tokens/s and {latency_s:g} s a request, as given"
    return ReplicaSpeed(throughput, places, latency_s, tokens_out, source)


def of_load(paths: Iterable[str | Path], replicas: int = 1) -> ReplicaSpeed:
    """From results.json of `lightning-gpt load`: the steps of a staircase (--steps 100:30,200:30,...), or one run for
    each rate. Steps in which the rate climbs say nothing of one rate and are left out.

    Args:
        paths: files.
        replicas: of the service that was measured.

    Raises:
        ValueError: no rate was held, or it is another kind of file.
    """
    if replicas < 1:
        raise ValueError(f"measured_replicas={replicas} must be at least 1")
    paths = list(paths)
    rows = [row for path in paths for row in _rows(Path(path))]
    steps, tokens, answers = [], 0.0, 0.0
    for row in rows:
        if not row["ok"] or row["latency_ms"]["p99"] is None:
            continue  # nothing was answered
        latency = row["latency_ms"]
        rate = row["rate_ok"] / replicas
        steps.append(Step(rate, latency["p50"] / 1e3, latency["p99"] / 1e3, row["error_rate"]))
        tokens, answers = tokens + row["tokens"], answers + row["ok"]
    if not steps:
        raise ValueError("load: no step of one rate has answers: measure some, such as --steps 100:30,200:30,400:30")
    steps.sort(key=lambda step: step.rate)
    throughput, quiet = steps[-1].rate, steps[0]
    names = ", ".join(str(path) for path in paths)
    source = f"{len(steps)} rates in {names}" + (f", {replicas} replicas" if replicas > 1 else "")
    # The time of a request is that of the quietest step: it leaves waits out, so places are few and waits pessimistic.
    places = max(int(throughput * quiet.p50_s + 1e-9), 1)
    return ReplicaSpeed(throughput, places, quiet.p99_s, max(tokens / answers, 1.0), source, tuple(steps))


def _rows(path: Path) -> list[dict[str, Any]]:
    content = _read(path, "load")
    try:
        climbs = (content.get("settings") or {}).get("rate_to") is not None
        rows = content["steps"] or [{**content["totals"], "rate_from": 0, "rate_to": int(climbs)}]
        names = ("ok", "rate_ok", "error_rate", "tokens")
        for row in rows:
            missing = [name for name in names if name not in row] + [
                n for n in ("p50", "p99") if n not in row["latency_ms"]
            ]
            if missing:
                raise LookupError(missing[0])
        return [row for row in rows if row["rate_from"] == row["rate_to"]]
    except (LookupError, TypeError) as error:
        raise ValueError(f"load={path} is not a results.json of lightning-gpt load: {error} is missing") from None


def of_bench(path: str | Path, tokens_in: float, tokens_out: float, slo_s: float) -> ReplicaSpeed:
    """From bench.json of `lightning-gpt bench`: the batch that serves most within the objective, of those whose
    prompts are nearest in length.

    A request takes the first token's time, by the share of its prompt in the measured one, and the time between tokens
    for the others; P99 is had with the P95 of the time between tokens. Rows that begin together are what was measured:
    a service that fills its batch as places come free has prompts between the steps of others, which costs the same in
    sum.

    Raises:
        ValueError: it is another kind of file, or no batch is quick enough.
    """
    found = []
    try:
        for row in _read(Path(path), "bench")["speeds"]:
            prompt = row["first_token_seconds"] * tokens_in / row["prompt"]
            rest = tokens_out - 1
            latency = prompt + rest * row["inter_token_seconds"]
            p99 = prompt + rest * max(row["inter_token_seconds_p95"], row["inter_token_seconds"])
            found.append((abs(math.log(row["prompt"] / tokens_in)), row["batch"] / latency, p99, row))
    except (LookupError, TypeError) as error:
        raise ValueError(f"bench={path} is not a bench.json of lightning-gpt bench: {error} is missing") from None
    nearest = min((one[0] for one in found), default=0.0)
    alike = [one for one in found if one[0] == nearest]
    within = [one for one in alike if one[2] <= slo_s]
    if not within:
        quickest = min((one[2] for one in alike), default=math.inf)
        raise ValueError(f"slo={slo_s:g} s is kept by no batch of {path} (best {quickest:.3g} s): allow more time")
    _, throughput, p99, row = max(within, key=lambda one: one[1])
    source = f"batch {row['batch']}, prompt {row['prompt']} in {path}"
    return ReplicaSpeed(throughput, row["batch"], p99, tokens_out, source)


def ratios_of(text: str) -> dict[str, tuple[float, int | None]]:
    """Other weight types: name -> (speed over the measured one, devices of a replica or None = as many).

    Args:
        text: int8=1.48,w4=0.9@1, or benchmarks/results/inference.json:gpt2-16 for what was measured there of our engine
            against bfloat16 in that workload.

    Raises:
        ValueError: it reads otherwise.
    """
    found: dict[str, tuple[float, int | None]] = {}
    for word in text.split(","):
        name, equal, value = word.strip().partition("=")
        if not equal:
            found |= _ratios_in(word.strip())
            continue
        ratio, _, devices = value.partition("@")
        try:
            found[name] = float(ratio), int(devices) if devices else None
        except ValueError:
            found[name] = math.nan, None
        if not 0 < found[name][0] < math.inf or found[name][1] == 0:
            raise ValueError(f"options={word.strip()} must read like int8=1.48 or w4=0.9@1 (speed, devices)")
    return found


def _ratios_in(text: str) -> dict[str, tuple[float, int | None]]:
    path, _, workload = text.rpartition(":")
    if not path:
        raise ValueError(f"options={text} must read like int8=1.48, or FILE:WORKLOAD of a comparison of engines")
    cells = _read(Path(path), "options").get("cells", [])
    speeds = {
        cell["setting"]: cell["tokens_per_second"]
        for cell in cells
        if cell.get("engine") == "ours" and cell.get("workload") == workload and cell.get("tokens_per_second")
    }
    if "bfloat16" not in speeds:
        known = sorted({cell.get("workload", "") for cell in cells})
        raise ValueError(f"options={text}: no workload {workload} with bfloat16 there (known: {', '.join(known)})")
    base = speeds.pop("bfloat16")
    return {name: (speed / base, None) for name, speed in speeds.items()}


def _read(path: Path, field: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{field}={path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{field}={path} must hold a JSON object")
    return content
