"""Protection against those who try keys."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from lightning_gpt.serving.errors import ApiError


class GuessGuard:
    """Addresses that brought too many wrong keys are refused for the rest of a window, before anything is hashed.

    Everybody behind such an address is refused, a valid key included: a limit well above typing mistakes is right.
    Behind a proxy the address must be the one that the proxy says, else all are one.

    Args:
        limit: failures in a window that are still tried.
        window_s: seconds, from the first failure.
        size: addresses that are remembered, the latest.
        clock: seconds.
    """

    def __init__(
        self, limit: int = 20, window_s: float = 60.0, size: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit, self.window_s, self.size, self.clock = limit, window_s, size, clock
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()  # network -> failures, end of the window

    def __len__(self) -> int:
        return len(self._failures)

    def check(self, address: str) -> None:
        """Before a key is looked at.

        Raises:
            ApiError: 429, code rate_limit_exceeded.
        """
        if not self._failures:
            return
        network = _network(address)
        count, until = self._failures.get(network, (0, 0.0))
        if count < self.limit:
            return
        left = until - self.clock()
        if left <= 0:
            del self._failures[network]
            return
        raise ApiError(
            429,
            f"more than {self.limit} wrong API keys came from this address within {self.window_s:g} s: "
            f"try again in {left:.0f} s with a valid one",
            code="rate_limit_exceeded",
            retry_after_s=left,
        )

    def failed(self, address: str) -> None:
        """A wrong key came."""
        network, now = _network(address), self.clock()
        count, until = self._failures.pop(network, (0, 0.0))
        if until <= now:
            count, until = 0, now + self.window_s
        self._failures[network] = count + 1, until
        if len(self._failures) > self.size:
            self._failures.popitem(last=False)


def _network(address: str) -> str:
    """Who is behind an address: of IPv6 the /64, as everybody has that many addresses to change between."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return parsed.exploded[:19]
