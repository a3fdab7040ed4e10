"""Throughput and latency of the engine under load: clients that wait for their answers, or requests that come as they
please."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from lightning_gpt.inference.engine import Engine
from lightning_gpt.inference.engine_config import EngineConfig
from lightning_gpt.inference.request import Request
from lightning_gpt.inference.runners import make_runner
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.nn import GPT, GPTConfig

SECONDS, LEAST, MOST = 10, 20, 200
"""Requests of a level: what arrives in so many seconds, at least and at most."""
IN_TIME = 0.5
"""Seconds within which the first token must come, for 99 of 100 requests, for a level to be borne."""


@dataclass
class Trace:
    """One request's times, in seconds from the beginning."""

    asked: float
    """When it arrived, whether or not the engine had time to look."""
    tokens: list[float] = field(default_factory=list)
    """When each token came."""


def drive(
    engine: Engine, requests: Sequence[Request], arrivals: Sequence[float] | None, clients: int = 0
) -> list[Trace]:
    """Sends requests and notes when their tokens come.

    Args:
        engine: that nobody else drives.
        requests: in the order in which they are sent.
        arrivals: seconds at which each arrives, rising (an open loop); None = closed: each of the clients sends its
            next request when it has its answer.
        clients: how many; of a closed loop.
    """
    traces: list[Trace] = []
    of: dict[int, Trace] = {}
    begin = time.perf_counter()

    def send(asked: float) -> None:
        trace = Trace(asked)
        of[engine.add(requests[len(traces)])] = trace
        traces.append(trace)

    for _ in range(min(clients, len(requests)) if arrivals is None else 0):
        send(0.0)
    while len(traces) < len(requests) or engine.busy:
        now = time.perf_counter() - begin
        while arrivals is not None and len(traces) < len(requests) and arrivals[len(traces)] <= now:
            send(arrivals[len(traces)])
        if not engine.busy:
            time.sleep(max(0.0, arrivals[len(traces)] - now))
            continue
        outputs = engine.step()
        now = time.perf_counter() - begin
        for output in outputs:
            of[output.key].tokens.append(now)
            if output.finish is not None and arrivals is None and len(traces) < len(requests):
                send(now)
    return traces


def random_requests(
    config: GPTConfig, count: int, prompt: Sequence[int], new: Sequence[int], seed: int
) -> list[Request]:
    """Greedy requests with lengths drawn evenly between the two ends, with random tokens."""
    draw = random.Random(seed)
    return [
        Request(
            [draw.randrange(config.vocab_size) for _ in range(draw.randint(*prompt))],
            draw.randint(*new),
            SamplingConfig(temperature=0),
        )
        for _ in range(count)
    ]


def measure_batching(
    shape: dict[str, Any],
    max_running: int,
    loop: str,
    levels: list[float],
    prompt: list[int],
    new: list[int],
    seed: int,
    dtype: str = "float32",
    most: int = MOST,
) -> Iterator[dict[str, float]]:
    """Rows over the level of load: tokens/s, and percentiles of the time to the first token, between tokens and to the
    end of an answer; in every row the highest level that is borne, with first tokens in time.

    Args:
        shape: fields of GPTConfig; the weights are random.
        max_running: requests that the engine computes side by side; 1 = one after the other.
        loop: closed = a level is a number of clients that wait for their answers; open = requests that arrive each
            second, as a Poisson process.
        levels: rising.
        prompt, new: least and most tokens of a prompt, and of an answer.
        seed: of arrivals, lengths and weights.
        dtype: of the weights.
        most: requests of a level, at most.
    """
    if loop not in ("closed", "open"):
        raise ValueError(f"loop={loop!r} must be closed or open")
    torch.manual_seed(seed)
    net = GPT(GPTConfig(**shape)).to(getattr(torch, dtype)).eval()
    rows, borne = [], 0.0
    for number, level in enumerate((levels[0], *levels)):  # the first once more: what the first steps take longer
        engine = Engine(make_runner(net), config=EngineConfig(max_running=max_running, share_prefixes=False))
        count = int(min(most, max(LEAST, SECONDS * level)))
        requests = random_requests(net.config, count, prompt, new, seed)
        draw = random.Random(seed)
        gaps = [draw.expovariate(level) for _ in requests] if loop == "open" else []
        arrivals = [sum(gaps[: index + 1]) for index in range(count)] if gaps else None
        traces = drive(engine, requests, arrivals, int(level))
        row = {"step": level, **summary(traces)}
        if number and row["latency/first_token_p99_ms"] <= 1e3 * IN_TIME:
            borne = level
        rows += [row] if number else []
    yield from ({**row, "load/borne": borne} for row in rows)


def summary(traces: Sequence[Trace]) -> dict[str, float]:
    """Tokens/s, and percentiles in milliseconds."""
    first = sorted(trace.tokens[0] - trace.asked for trace in traces)
    whole = sorted(trace.tokens[-1] - trace.asked for trace in traces)
    gaps = sorted(b - a for trace in traces for a, b in zip(trace.tokens, trace.tokens[1:]))
    span = max(trace.tokens[-1] for trace in traces) - min(trace.asked for trace in traces)
    return {
        "throughput/tokens_per_second": sum(len(trace.tokens) for trace in traces) / span,
        "latency/first_token_p50_ms": 1e3 * median(first),
        "latency/first_token_p99_ms": 1e3 * percentile(first, 0.99),
        "latency/between_tokens_p50_ms": 1e3 * median(gaps) if gaps else 0.0,
        "latency/answer_p50_ms": 1e3 * median(whole),
        "latency/answer_p99_ms": 1e3 * percentile(whole, 0.99),
    }


def percentile(rising: Sequence[float], share: float) -> float:
    """The value that so large a share does not exceed."""
    return rising[min(len(rising) - 1, int(share * len(rising)))]
