"""What a load must reach for its command to succeed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Aims:
    """None = no aim."""

    max_error_rate: float | None = None
    """Share of requests without a right answer."""
    max_p99_ms: float | None = None
    min_rate: float | None = None
    """Right answers a second."""

    def missed(self, totals: dict[str, Any]) -> list[str]:
        """Each aim that does not hold, in words; a figure that does not exist misses its aim.

        Args:
            totals: of a LoadResult.
        """
        found = []
        rate, p99, reached = totals["error_rate"], totals["latency_ms"]["p99"], totals["rate_ok"]
        if self.max_error_rate is not None and not rate <= self.max_error_rate:
            found.append(f"max_error_rate: {rate:.3%} of the requests failed, more than {self.max_error_rate:.3%}")
        if self.max_p99_ms is not None and not p99 <= self.max_p99_ms:
            found.append(f"max_p99_ms: the P99 is {p99:,.1f} ms, more than {self.max_p99_ms:,.1f} ms")
        if self.min_rate is not None and not reached >= self.min_rate:
            found.append(f"min_rate: {reached:,.1f} right answers/s, fewer than {self.min_rate:,.1f}")
        return found
