"""Exercises of 10, production."""

from __future__ import annotations

import math
from typing import Any

from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.judging import close, equal, function, number
from lightning_gpt.learning.runs import content
from lightning_gpt.learning.service import ask, completion


def check_held(answer: dict) -> str:
    """200 requests/s for 30 s, within the aims."""
    found = content(answer, "load", "results.json")
    settings, totals = found.get("settings", {}), found.get("totals", {})
    if not (settings.get("rate") or 0) >= 200:
        raise Wrong(f"the load's rate was {settings.get('rate')}, asked for are 200 requests/s or more")
    if found.get("stopped") or (settings.get("duration_s") or 0) < 30:
        raise Wrong("the load was shorter than 30 s")
    if found.get("missed_aims"):
        raise Wrong(f"aims were missed: {found['missed_aims']}")
    if (totals.get("availability") or 0) < 0.999:
        raise Wrong(f"{totals.get('availability')} of the requests were answered, asked for is 0.999")
    if totals["latency_ms"]["p99"] > 500:
        raise Wrong(f"P99 is {totals['latency_ms']['p99']:.0f} ms, asked for is below 500 ms")
    return f"{totals['rate_ok']:.0f} answers/s, P99 {totals['latency_ms']['p99']:.0f} ms"


def check_loops(answer: dict) -> None:
    """Closed and open."""
    closed, opened = content(answer, "closed", "results.json"), content(answer, "open", "results.json")
    if not closed["settings"].get("concurrency"):
        raise Wrong("closed: this load had a rate and no --concurrency")
    rate, reached = opened["settings"].get("rate"), closed["totals"]["rate_ok"]
    if not rate or rate < 1.35 * reached:
        raise Wrong(f"open: its rate of {rate} is not one and a half times the closed loop's {reached:.0f} answers/s")
    times = opened["totals"]["latency_ms"]["p99"] / closed["totals"]["latency_ms"]["p99"]
    close("p99_open_over_closed", answer.get("p99_open_over_closed"), times, 0.05)
    equal("a_user_sees", answer.get("a_user_sees"), "open")


def check_little(answer: dict) -> None:
    """Rate times mean latency, step by step."""
    steps = content(answer, "load", "results.json").get("steps") or []
    if len(steps) < 4:
        raise Wrong(f"this load has {len(steps)} steps: --steps 100:10,200:10,400:10,800:10")
    given = answer.get("rate_times_latency")
    if not isinstance(given, list) or len(given) != len(steps):
        raise Wrong(f"rate_times_latency: a list of {len(steps)} is wanted")
    for place, (mine, step) in enumerate(zip(given, steps), 1):
        product = step["rate_ok"] * step["latency_ms"]["mean"] / 1e3
        close(f"rate_times_latency of step {place}", mine, product, 0.1, 0.05)


def check_replicas(answer: dict) -> None:
    """How many carry the rate, and how many spare ones."""
    ceiling = number("ceiling", answer.get("ceiling"))
    if ceiling <= 0:
        raise Wrong("ceiling: requests/s of one replica at P99 500 ms, above 0")
    needed = math.ceil(5000 / (0.8 * ceiling))
    close("replicas", answer.get("replicas"), needed, 0, 0.1)
    down, spare = 0.2 * 60 / 86400, 0
    while _available(needed, spare, down) < 0.999:
        spare += 1
    close("spare", answer.get("spare"), spare, 0, 0.1)


def _available(needed: int, spare: int, down: float) -> float:
    """Probability that at most `spare` of needed + spare are down."""
    n = needed + spare
    return sum(math.comb(n, k) * down**k * (1 - down) ** (n - k) for k in range(spare + 1))


BUCKET_STUB = '''
class TokenBucket:
    """A steady rate with room for bursts: full at first, fills at `rate` tokens a second up to `burst`."""

    def __init__(self, rate, burst, clock):
        """clock() gives seconds; it may stand still, jump, or even go back (then nothing is filled)."""
        raise NotImplementedError

    def take(self, n):
        """0.0 when n tokens were there and are taken; else the seconds to wait until they would be, taking nothing.

        n is never larger than burst. Who waits as told, and nobody else comes, gets 0.0 then.
        """
        raise NotImplementedError


if __name__ == "__main__":
    now = [0.0]
    bucket = TokenBucket(2.0, 4.0, lambda: now[0])
    print([bucket.take(2), bucket.take(2), bucket.take(1)], "wanted [0.0, 0.0, 0.5]")
    now[0] = 0.5
    print(bucket.take(1), "wanted 0.0")
'''


def check_bucket(answer: Any) -> None:
    """A thousand requests beside ours; then no interval grants more than burst + rate t."""
    import random

    from lightning_gpt.serving.token_bucket import TokenBucket

    made, draw = function(answer, "TokenBucket"), random.Random(0)
    for rate, burst in ((2.0, 4.0), (100.0, 1.0), (0.5, 10.0)):
        now = [100.0]
        mine, ours = made(rate, burst, lambda: now[0]), TokenBucket(rate, burst, lambda: now[0])  # noqa: B023
        latest = now[0]
        for count in range(400):
            back = count % 50 == 49
            now[0] += -3.0 if back else draw.expovariate(1.0) * burst / rate
            n = draw.uniform(0.1, 1.0) * burst
            where = f"rate {rate:g}, burst {burst:g}, request {count}{' (the clock went back)' if back else ''}"
            wait, right = number("take", mine.take(n)), ours.take(n)
            if (wait == 0) != (right == 0):
                raise Wrong(f"{where}: {'granted' if wait == 0 else 'refused'}, which is wrong")
            ahead, latest = now[0] >= latest, max(latest, now[0])
            if wait and ahead:  # who comes while the clock is behind waits for it as well
                close(f"{where}: the wait", wait, right, 1e-6)
                now[0] += wait * (1 + 1e-9)
                again, _ = mine.take(n), ours.take(n)
                if again > 1e-6:
                    raise Wrong(f"{where}: who waited {wait:.4g} s as told has to wait {again:.4g} s more")
            latest = max(latest, now[0])
        mine, level = made(rate, burst, lambda: now[0]), 0.0  # noqa: B023
        start = now[0]
        for _ in range(200):
            now[0] += draw.uniform(0, 0.3) / rate
            level += 0.9 * burst if mine.take(0.9 * burst) == 0 else 0
            if level > burst + rate * (now[0] - start) + 1e-6:
                raise Wrong(f"in {now[0] - start:.3g} s {level:.3g} tokens were granted: more than burst + rate t")


def solve_bucket() -> dict:
    """Of serving/token_bucket.py."""
    from lightning_gpt.serving.token_bucket import TokenBucket

    return {"TokenBucket": TokenBucket}


def check_service(answer: dict) -> str:
    """A live service: ready, answers, counts, and refuses what it should."""
    url = str(answer.get("url") or "").rstrip("/")
    if not url.startswith("http"):
        raise Wrong("url: not filled in yet: such as http://127.0.0.1:8000")
    key = answer.get("key")
    status, _ = ask(f"{url}/health/ready", key=key)
    if status != 200:
        raise Wrong(f"{url}/health/ready says {status}, not 200: is a model loaded?")
    text = completion(url, key)
    status, body = ask(f"{url}/v1/completions", {"model": "no-such-model", "prompt": "a", "max_tokens": 1}, key)
    if not 400 <= status < 500:
        raise Wrong(f"a request for a model that does not exist gets {status}; 4xx is right ({str(body)[:60]})")
    return f"it continues 'To be' with {text[:40]!r}"


EXERCISES = (
    Exercise(
        1,
        "Serve it",
        "run",
        "Start the service and hold 200 requests/s for 30 s: P99 below 500 ms, 99.9% answered.",
        "load:   # folder of lightning-gpt load --output",
        check_held,
        ("lightning-gpt load URL --rate 200 --duration 30 --output runs/load", "Fewer max_tokens, shorter prompts."),
        "held",
    ),
    Exercise(
        1,
        "The loop that lies",
        "run",
        "Load with --concurrency 16, then with a --rate of one and a half times what that gave. By which factor is the "
        "open loop's P99 larger, and which of the two does a user see (closed or open)?",
        "closed:                 # folder of the load\nopen:                   # folder of the load\n"
        "p99_open_over_closed:\na_user_sees:",
        check_loops,
        ("totals.latency_ms.p99 in both results.json.", "Users do not wait for each other before they come."),
        "loops",
    ),
    Exercise(
        2,
        "Little's law",
        "run",
        "A load in four steps or more: at each, answers a second times mean latency in seconds.",
        "load:                 # folder of the load\nrate_times_latency:   # a list, one a step",
        check_little,
        ("results.json has rate_ok and latency_ms of each of its steps.", "Milliseconds are not seconds."),
        "little",
    ),
    Exercise(
        2,
        "How many replicas",
        "measure",
        "From your ceiling (requests/s of one replica at P99 500 ms): replicas for 5,000 requests/s with a fifth left "
        "free, and spare ones for 99.9%, if each is down 0.2 times a day for a minute.",
        "ceiling:\nreplicas:\nspare:",
        check_replicas,
        (
            "5,000 over 0.8 of the ceiling, rounded up.",
            "A replica is down a share 0.2 x 60 / 86,400 of the time; all that are needed must be up at once.",
        ),
        "replicas",
        lambda: "ceiling: 800\nreplicas: 8\nspare: 1\n",
    ),
    Exercise(
        3,
        "A token bucket",
        "component",
        "What quotas are made of: exact with any clock, fair to who waits.",
        BUCKET_STUB,
        check_bucket,
        (
            "Keep a level and the time at which it was right; fill only when you are asked.",
            "A clock that goes back: neither fill nor move your time back, or the same seconds fill twice.",
            "A wait of (n - level) / rate leaves rounding: allow for 1e-9 of the burst when comparing.",
        ),
        "bucket",
        solve_bucket,
    ),
    Exercise(
        2,
        "A service that answers",
        "run",
        "Give the address of a running service. It must be ready, continue a text, and refuse an unknown model.",
        "url:   # such as http://127.0.0.1:8000\nkey:   # where it asks for one",
        check_service,
        ("lightning-gpt serve models/shakespeare", "/health/ready says 503 while models load."),
        "service",
    ),
)
