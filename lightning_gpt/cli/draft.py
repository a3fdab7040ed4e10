"""The report of `lightning-gpt generate --stats`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_gpt.inference import TextPiece
    from lightning_gpt.inference.speculator import Speculator


def with_stats(pieces: Iterator[TextPiece], drafter: Speculator | None) -> Iterator[TextPiece]:
    """The same pieces; at their end a line about them on standard error. The network is prepared before the first."""
    started, first, tokens = perf_counter(), 0.0, {}
    for piece in pieces:
        first = first or perf_counter() - started
        tokens[piece.row] = piece.tokens
        yield piece
    seconds, made = perf_counter() - started, sum(tokens.values())
    after = max(made - len(tokens), 0) / max(seconds - first, 1e-9)
    line = f"{made} tokens in {seconds:.2f} s, the first after {first:.2f} s, then {after:.1f} tokens/s"
    print("\n" + (line if drafter is None else f"{line}; {drafter.stats()}"), file=sys.stderr)
