"""What every request came to, in flat columns: some 40 bytes a request, however long the load runs."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

import numpy as np

from lightning_gpt.load.exchange import OK, Exchange

FINEST_S, BINS_PER_DECADE, DECADES = 1e-5, 200, 7
NOTHING = float("nan")
MOST_OUTCOMES = 200
OTHER = "other"
"""What errors of further kinds are called: a server may make up a code each time."""


class Histogram:
    """Counts of durations from 10 us to 100 s in bins of 1.2% width."""

    def __init__(self) -> None:
        self.counts = array("q", bytes(8 * (BINS_PER_DECADE * DECADES + 1)))
        self.total = 0
        self.sum_s = 0.0
        self.max_s = 0.0

    def add(self, seconds: float) -> None:
        """Counts one duration."""
        place = int(math.log10(seconds / FINEST_S) * BINS_PER_DECADE) + 1 if seconds > FINEST_S else 0
        self.counts[min(place, len(self.counts) - 1)] += 1
        self.total += 1
        self.sum_s += seconds
        if seconds > self.max_s:
            self.max_s = seconds

    def quantile(self, share: float) -> float:
        """Seconds that `share` of the durations do not exceed, to the bin's width; NaN without durations."""
        if not self.total:
            return NOTHING
        counts = np.cumsum(np.asarray(self.counts))
        place = int(np.searchsorted(counts, max(share * self.total, 1)))
        return min(FINEST_S * 10 ** (place / BINS_PER_DECADE), self.max_s)


@dataclass(frozen=True)
class Samples:
    """The columns as numpy reads them, [N] each, in the order in which requests ended; seconds from the start."""

    due: np.ndarray
    lag: np.ndarray
    """From due to sent."""
    latency: np.ndarray
    """From due to the answer's end."""
    ttft: np.ndarray
    """From due to the first token; NaN where the answer was not streamed."""
    tpot: np.ndarray
    """Seconds a token after the first; NaN as above, and for answers of one token."""
    tokens: np.ndarray
    outcome: np.ndarray
    """Number in `outcomes`; 0 = ok."""
    tenant: np.ndarray
    outcomes: list[str]


class Recorder:
    """Takes exchanges that have ended."""

    def __init__(self) -> None:
        self.outcomes = [OK]
        self._number = {OK: 0}
        self.due, self.lag, self.latency = array("d"), array("f"), array("f")
        self.ttft, self.tpot = array("f"), array("f")
        self.tokens, self.outcome, self.tenant = array("I"), array("H"), array("B")
        self.gaps = Histogram()
        """Between tokens of streamed answers."""
        self.retry_after = 0
        """Refusals that said when to come again."""

    def add(self, exchange: Exchange, start: float) -> None:
        """Keeps the figures of an exchange.

        Args:
            exchange: has its outcome.
            start: of the load, on the exchange's clock.
        """
        number = self._number.get(exchange.outcome)
        if number is None:
            outcome = exchange.outcome if len(self.outcomes) < MOST_OUTCOMES else OTHER
            number = self._number.setdefault(outcome, len(self.outcomes))
            if number == len(self.outcomes):
                self.outcomes.append(outcome)
        due = exchange.due
        self.due.append(due - start)
        self.lag.append((exchange.sent or exchange.ended) - due)
        self.latency.append(exchange.ended - due)
        first = exchange.first
        self.ttft.append(NOTHING if first is None else first - due)
        several = first is not None and exchange.tokens > 1
        self.tpot.append((exchange.last - first) / (exchange.tokens - 1) if several else NOTHING)
        self.tokens.append(exchange.tokens)
        self.outcome.append(number)
        self.tenant.append(exchange.tenant)
        if exchange.retry_after is not None:
            self.retry_after += 1

    def samples(self) -> Samples:
        """Everything so far."""

        def column(values: array) -> np.ndarray:
            return np.array(values)

        return Samples(
            column(self.due),
            column(self.lag).astype(np.float64),
            column(self.latency).astype(np.float64),
            column(self.ttft).astype(np.float64),
            column(self.tpot).astype(np.float64),
            column(self.tokens).astype(np.int64),
            column(self.outcome).astype(np.int64),
            column(self.tenant).astype(np.int64),
            list(self.outcomes),
        )
