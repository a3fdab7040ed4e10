"""What a load is: rate over time, requests, limits."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_gpt.load.arrivals import Segment, parse_steps
from lightning_gpt.load.mixture import Mixture

MOST_TENANTS = 255


@dataclass(frozen=True)
class LoadSettings:
    """Everything that a run depends on; two runs with equal settings send the same requests at the same times.

    Raises:
        ValueError: a value that cannot be; the message names field, value and mend.
    """

    url: str
    """http://HOST:PORT, with or without /v1."""
    model: str | None = None
    """None = the first that /v1/models names."""
    endpoint: str = "completions"
    """completions or chat."""
    rate: float = 10.0
    """Requests a second."""
    rate_to: float | None = None
    """With it the rate climbs evenly from `rate` to this."""
    duration_s: float = 30.0
    """Seconds in which requests are sent."""
    steps: str | None = None
    """RATE:SECONDS,... in place of rate and duration_s; FROM-TO:SECONDS climbs."""
    arrivals: str = "poisson"
    """poisson, or constant = evenly apart."""
    burst: int = 1
    """Requests that are due together."""
    concurrency: int | None = None
    """A closed loop in place of a rate: so many clients, each waiting for its answer before it asks again."""
    requests: int | None = None
    """No more requests than this."""
    warmup_s: float = 0.0
    """The first seconds, which are in the series and in no total."""
    prompts: str = "builtin"
    """A file of prompts, one a line or JSONL, or builtin."""
    words: str | None = None
    """Lengths of synthetic prompts, such as 16:0.5,64:0.3,256:0.2."""
    distinct: int = 1000
    """Number of synthetic prompts."""
    max_tokens: str = "16"
    """Of each answer: a number, a range 8-32, or a mixture as `words`."""
    stream: float = 0.0
    """Share of requests whose answers are streamed."""
    temperature: float = 0.0
    sampling_seed: int | None = None
    """`seed` of every request."""
    ignore_eos: bool = False
    """Answers go on to max_tokens; an extension that not every server knows."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """A key, or the keys of several tenants with equal shares of the requests."""
    timeout_s: float = 30.0
    """A request that has no answer so long after it was due is given up."""
    request_timeout_s: float | None = None
    """Sent as X-Request-Timeout."""
    connections: int = 4096
    """At most; requests that find none free wait in the client, which their latency shows."""
    slo_ms: float = 500.0
    """Answers within it are goodput."""
    check: bool = False
    """First ask every different request once and alone; later answers must be equal."""
    expect: str | None = None
    """answers.jsonl of an earlier run with `check`, in place of asking."""
    cpu: int | None = None
    """Core that the generator keeps to."""
    watch_pids: tuple[int, ...] = ()
    """Processes whose memory and processor time are sampled, with their children."""
    seed: int = 0
    """Of arrival times and of the choice of requests."""
    allow_remote: bool = False
    """Also servers that are not on this machine."""

    def __post_init__(self) -> None:
        choices = {"endpoint": ("completions", "chat"), "arrivals": ("poisson", "constant")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)} must be one of {', '.join(allowed)}")
        for name in ("duration_s", "timeout_s", "slo_ms"):
            self._check(name, lambda value: value > 0, "above 0")
        for name in ("burst", "concurrency", "requests", "distinct", "connections"):
            self._check(name, lambda value: value >= 1, "at least 1")
        for name in ("rate", "rate_to", "warmup_s", "temperature", "seed"):
            self._check(name, lambda value: value >= 0, "at least 0")
        self._check("request_timeout_s", lambda value: value > 0, "above 0")
        self._check("stream", lambda value: 0 <= value <= 1, "a share between 0 and 1")
        if len(self.api_keys) > MOST_TENANTS:
            raise ValueError(f"{len(self.api_keys)} API keys are too many, at most {MOST_TENANTS}")
        if any(not key.isascii() or not key.isprintable() or " " in key for key in self.api_keys):
            raise ValueError("an API key must be printable ASCII without spaces")
        if self.concurrency is not None and (self.steps or self.rate_to is not None or self.burst > 1):
            raise ValueError("concurrency is a closed loop and has no rate: leave out steps, rate_to and burst")
        if self.steps is not None and self.rate_to is not None:
            raise ValueError("give steps or rate_to, not both: steps=FROM-TO:SECONDS climbs as well")
        if self.concurrency is None and not any(segment.requests for segment in self.segments()):
            raise ValueError("rate=0 sends nothing: give a rate above 0")
        if self.warmup_s >= self.seconds:
            raise ValueError(f"warmup_s={self.warmup_s:g} must be shorter than the load, {self.seconds:g} s")
        Mixture.parse("max_tokens", self.max_tokens)
        if self.words is not None:
            Mixture.parse("words", self.words)
        if (self.check or self.expect) and self.temperature > 0 and self.sampling_seed is None:
            raise ValueError("answers can be checked only where they repeat: give temperature 0 or sampling_seed")

    def _check(self, name: str, holds: Any, wanted: str) -> None:
        value = getattr(self, name)
        if value is not None and not (math.isfinite(value) and holds(value)):
            raise ValueError(f"{name}={value:g} must be {wanted}")

    def segments(self) -> list[Segment]:
        """The rate over time; for a closed loop one segment, whose rate means nothing."""
        if self.steps is not None:
            return parse_steps(self.steps)
        return [Segment(self.rate, self.rate if self.rate_to is None else self.rate_to, self.duration_s)]

    @property
    def seconds(self) -> float:
        """In which requests are sent."""
        return sum(segment.seconds for segment in self.segments())

    def public(self) -> dict[str, Any]:
        """For reports: everything but the keys, of which only the number is told."""
        content = asdict(self)
        content["api_keys"] = len(self.api_keys)
        content["watch_pids"] = list(self.watch_pids)
        return content
