"""Answers to requests that always have the same one."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

OVERHEAD = 300
"""Bytes that an entry takes beside its answer: key, tuple, dictionary."""
SILENT = ("user", "metadata", "store", "stream", "stream_options", "service_tier", "model")
"""Fields that change nothing in the answer; the model is in the key by its version."""


def cacheable(request: dict[str, Any]) -> bool:
    """Whether a request has one answer: greedy or with a seed, one choice, not streamed.

    Args:
        request: body of a completion or chat completion, as it came or checked.
    """
    temperature, seed = request.get("temperature"), request.get("seed")
    greedy = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
    seeded = isinstance(seed, int) and not isinstance(seed, bool)
    single = request.get("n") in (None, 1) and request.get("best_of") in (None, 1)
    return (greedy or seeded) and single and not request.get("stream")


def cache_key(endpoint: str, version: str, tenant: str, request: dict[str, Any]) -> bytes:
    """What two requests must share to share an answer. The tenant is part of it: how fast an answer comes would tell
    one tenant what another has asked.

    Args:
        endpoint: route.
        version: of the model, with its adapter: whatever changes the weights.
        tenant: name.
        request: body; fields that are None count as left out.
    """
    said = {name: value for name, value in request.items() if value is not None and name not in SILENT}
    text = json.dumps([endpoint, version, tenant, said], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


class ResponseCache:
    """The latest used answers, within a size and an age. Answers that failed, were cut off by a client or were
    shortened in need do not belong in it.

    Args:
        max_bytes: of all answers with what keeping them takes; 0 = keep nothing.
        ttl_s: age at which an answer is forgotten.
        clock: seconds.
    """

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes, self.ttl_s, self.clock = max_bytes, ttl_s, clock
        self.bytes = self.hits = self.misses = 0
        self._answers: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()  # key -> answer, end of its life

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: bytes) -> bytes | None:
        """The answer, None = it is not there (any more)."""
        answer, until = self._answers.get(key, (b"", 0.0))
        if key in self._answers and until <= self.clock():
            self._drop(key)
        if key not in self._answers:
            self.misses += 1
            return None
        self._answers.move_to_end(key)
        self.hits += 1
        return answer

    def put(self, key: bytes, answer: bytes) -> None:
        """Keeps an answer, and forgets those that were not asked for longest to make room. One that takes more than a
        quarter of all is not kept."""
        if key in self._answers:
            self._drop(key)
        size = len(answer) + OVERHEAD
        if size > self.max_bytes / 4:
            return
        self._answers[key] = answer, self.clock() + self.ttl_s
        self.bytes += size
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: bytes) -> None:
        answer, _ = self._answers.pop(key)
        self.bytes -= len(answer) + OVERHEAD

    def clear(self) -> None:
        """Forgets all, as when a version is loaded anew under the same name."""
        self._answers.clear()
        self.bytes = 0
