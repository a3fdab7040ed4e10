"""Figures of a load from its samples.

Latencies run from when a request was due. They are those of answers that were right and of requests that timed out
here, with the time they waited: to leave these out would make a server look the faster the more it loses. Refusals
and failures are counted apart.
"""

from __future__ import annotations

import itertools
from datetime import datetime
from typing import Any

import numpy as np

from lightning_gpt.load.exchange import CANCELLED, TIMEOUT, WRONG
from lightning_gpt.load.generator import Generator
from lightning_gpt.load.recorder import Samples
from lightning_gpt.load.result import LoadResult

LATE_MS, LATE_SHARE = 10.0, 0.1
"""A generator that sends 1% of its requests later than this, and later than this share of the P99, is itself part of
what it measures."""
SHARES = [*np.linspace(0, 0.9, 91), *(1 - np.geomspace(0.099, 1e-5, 160)), 1.0]
GOOD_ERROR_RATE = 1e-3
"""A step holds if it keeps within this and its P99 within slo_ms."""


def summarize(
    generator: Generator,
    model: str,
    began: datetime,
    seconds: float,
    hardware: dict[str, Any],
    watched: list[dict[str, float]],
) -> LoadResult:
    """The result of a load that has ended.

    Args:
        generator: has run.
        model: that was asked.
        began: time of day of its beginning.
        seconds: from there to the last answer.
        hardware: as machine.hardware.
        watched: samples of the server's processes.
    """
    settings, recorder = generator.settings, generator.recorder
    samples = recorder.samples()
    sending_s = min(generator.sending_s or seconds, seconds)
    start = settings.warmup_s if settings.warmup_s < sending_s else 0.0
    slo_s = settings.slo_ms / 1e3
    totals = figures(samples, start, sending_s, slo_s)
    counted = samples.due >= start
    totals |= {
        "ttft_ms": percentiles(samples.ttft[counted & (samples.outcome == 0)]),
        "tpot_ms": percentiles(samples.tpot[counted & (samples.outcome == 0)]),
        "itl_ms": {name: recorder.gaps.quantile(share) * 1e3 for name, share in PERCENTILES.items()}
        | {
            "mean": recorder.gaps.sum_s / recorder.gaps.total * 1e3 if recorder.gaps.total else NOTHING,
            "max": recorder.gaps.max_s * 1e3 if recorder.gaps.total else NOTHING,
        },
        "client_lag_ms": percentiles(samples.lag[counted]),
        "client_processor_percent": generator.processor_s / max(seconds, 1e-9) * 100,
        "sent_again": generator.client.reconnects,
        "waited_for_connection": generator.client.waited,
        "connections_opened": generator.client.opened,
        "refusals_with_retry_after": recorder.retry_after,
        "answers_compared_with": 0 if generator.answers is None else len(generator.answers),
    }
    numbers = np.bincount(samples.outcome[counted], minlength=len(samples.outcomes))
    errors = {name: int(count) for name, count in zip(samples.outcomes[1:], numbers[1:]) if count and name != CANCELLED}
    answered = samples.latency[answered_mask(samples) & counted]
    quantiles = {"shares": [float(share) for share in SHARES]}
    for name, values in (("latency_ms", answered), ("ttft_ms", samples.ttft[counted & ~np.isnan(samples.ttft)])):
        quantiles[name] = (np.quantile(values, SHARES) * 1e3).tolist() if len(values) else []
    result = LoadResult(
        settings=settings.public(),
        model=model,
        started=began.isoformat(timespec="seconds").replace("+00:00", "Z"),
        seconds=seconds,
        sending_s=sending_s,
        stopped=generator.stopped,
        totals=totals,
        errors=dict(sorted(errors.items(), key=lambda one: -one[1])),
        series=series(samples, slo_s),
        steps=steps(generator, samples, sending_s, slo_s),
        tenants=tenants(samples, len(settings.api_keys), start, sending_s, slo_s),
        quantiles=quantiles,
        watched=watched,
        hardware=hardware,
        warnings=[],
        wrong_answers=generator.answers.examples if generator.answers else [],
        samples=samples,
        answers=generator.answers,
    )
    result.warnings = warnings(result)
    return result


NOTHING = float("nan")
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Mean, percentiles and maximum of seconds, in milliseconds; NaNs do not count."""
    values = values[~np.isnan(values)]
    if not len(values):
        return dict.fromkeys(["mean", *PERCENTILES, "max"], NOTHING)
    found = np.quantile(values, list(PERCENTILES.values())) * 1e3
    middle = dict(zip(PERCENTILES, found.tolist()))
    return {"mean": float(values.mean() * 1e3), **middle, "max": float(values.max() * 1e3)}


def numbers_of(samples: Samples, *names: str) -> list[int]:
    """Numbers that these outcomes have among the samples."""
    return [number for number, one in enumerate(samples.outcomes) if one in names]


def answered_mask(samples: Samples) -> np.ndarray:
    """Requests whose latency counts, bool [N]."""
    return np.isin(samples.outcome, [0, *numbers_of(samples, TIMEOUT)])


def figures(samples: Samples, start: float, end: float, slo_s: float, only: np.ndarray | None = None) -> dict[str, Any]:
    """Counts, rates and latencies of the requests that were due in [start, end).

    Args:
        samples: of the whole load.
        start: seconds.
        end: seconds.
        slo_s: answers within it are good.
        only: bool [N], requests that are meant; None = all.
    """
    mine = np.ones(len(samples.due), bool) if only is None else only
    counted = mine & (samples.due >= start) & (samples.due < end)
    ok = samples.outcome == 0
    cancelled = np.isin(samples.outcome, numbers_of(samples, CANCELLED))
    ended = samples.due + samples.latency
    inside = mine & (ended >= start) & (ended < end)
    span = max(end - start, 1e-9)
    sent, fine = int(counted.sum()), int((counted & ok).sum())
    gave_up = int((counted & cancelled).sum())
    ours = [number for number, name in enumerate(samples.outcomes) if name.startswith("4")]
    refused = int((counted & np.isin(samples.outcome, ours)).sum())
    finished = sent - gave_up
    return {
        "requests": sent,
        "ok": fine,
        "errors": finished - fine,
        "cancelled": gave_up,
        "wrong": int((counted & np.isin(samples.outcome, numbers_of(samples, WRONG))).sum()),
        "rate_sent": sent / span,
        "rate_ok": int((inside & ok).sum()) / span,
        "goodput": int((inside & ok & (samples.latency <= slo_s)).sum()) / span,
        "error_rate": (finished - fine) / finished if finished else NOTHING,
        "availability": fine / (finished - refused) if finished > refused else NOTHING,
        "tokens": int(samples.tokens[counted & ok].sum()),
        "tokens_per_second": int(samples.tokens[inside & ok].sum()) / span,
        "latency_ms": percentiles(samples.latency[counted & answered_mask(samples)]),
    }


def series(samples: Samples, slo_s: float) -> dict[str, Any]:
    """A value a second. What was sent counts when it was sent, answers and errors when they came, percentiles by
    the second in which the requests were due."""
    sent_at, ended = samples.due + samples.lag, samples.due + samples.latency
    seconds = int(np.floor(ended.max())) + 1 if len(ended) else 0

    def count(times: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(times.astype(np.int64).clip(0), weights=weights, minlength=seconds)[:seconds]

    ok = samples.outcome == 0
    sent, done = count(sent_at), count(ended)
    valid = np.flatnonzero(answered_mask(samples))
    order = valid[np.argsort(samples.due[valid], kind="stable")]
    edges = np.searchsorted(samples.due[order], np.arange(seconds + 1))
    latency, rows = samples.latency[order], []
    for first, last in itertools.pairwise(edges):
        here = latency[first:last]
        rows.append(np.quantile(here, [0.5, 0.9, 0.99]) * 1e3 if len(here) else [NOTHING] * 3)
    p50, p90, p99 = (np.array(rows).reshape(-1, 3).T).tolist()
    return {
        "second": list(range(seconds)),
        "sent": sent.tolist(),
        "done": done.tolist(),
        "ok": count(ended[ok]).tolist(),
        "good": count(ended[ok & (samples.latency <= slo_s)]).tolist(),
        "errors": count(ended[~ok]).tolist(),
        "errors_by_kind": {
            name: count(ended[samples.outcome == number]).tolist()
            for number, name in enumerate(samples.outcomes)
            if number
        },
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "in_flight": (np.cumsum(sent) - np.cumsum(done)).tolist(),
        "tokens": count(ended[ok], samples.tokens[ok]).astype(int).tolist(),
    }


def steps(generator: Generator, samples: Samples, sending_s: float, slo_s: float) -> list[dict[str, Any]]:
    """Figures of each part of a schedule that has several, and whether it holds: P99 and errors within their aims."""
    if generator.settings.steps is None:
        return []
    found, start = [], 0.0
    for segment in generator.settings.segments():
        end = min(start + segment.seconds, sending_s)
        if end > start:
            one = figures(samples, start, end, slo_s)
            within = one["latency_ms"]["p99"] <= slo_s * 1e3 and one["error_rate"] <= GOOD_ERROR_RATE
            about = {"rate_from": segment.rate_from, "rate_to": segment.rate_to, "start": start, "seconds": end - start}
            found.append(about | one | {"holds": bool(within)})
        start += segment.seconds
    return found


def tenants(samples: Samples, keys: int, start: float, end: float, slo_s: float) -> list[dict[str, Any]]:
    """Figures of each key."""
    if keys < 2:
        return []
    return [{"tenant": one} | figures(samples, start, end, slo_s, samples.tenant == one) for one in range(keys)]


def warnings(result: LoadResult) -> list[str]:
    """What a reader must know before believing the figures."""
    totals, found = result.totals, []
    late, p99 = totals["client_lag_ms"]["p99"], np.nan_to_num(totals["latency_ms"]["p99"])
    if result.stopped:
        found.append(f"ended early, after {result.sending_s:.1f} s")
    if totals["waited_for_connection"]:
        found.append(
            f"{totals['waited_for_connection']:,} requests waited in the generator, as all "
            f"{result.settings['connections']:,} connections were busy: raise --connections to see what the server does"
        )
    elif late > max(LATE_MS, LATE_SHARE * p99):
        found.append(
            f"the generator was a bottleneck: 1% of the requests left it {late:.0f} ms late "
            "or more; give it a core of its own (--cpu), or a lower rate"
        )
    if result.errors.get(TIMEOUT):
        found.append(f"{result.errors[TIMEOUT]} requests had no answer in {result.settings['timeout_s']:g} s")
    if totals["wrong"]:
        found.append(f"{totals['wrong']} answers were not those that the same requests got alone")
    return found
