"""Which texts begin alike, so that what they share is read once: the choices of one question, the examples of a set."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

LEAST = 16
"""Shorter beginnings cost more to share than to read again."""
MOST = 256
"""Members of a family: more would gain nothing."""


class Row(NamedTuple):
    """One text to be read."""

    tokens: tuple[int, ...]
    scored: int
    """At how many of the last tokens predictions are wanted; those are never part of what is shared."""


class Family(NamedTuple):
    """Texts that begin with the same tokens."""

    shared: int
    """How many tokens of each are shared; 0 for a text of its own."""
    rows: list[Row]


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens at the beginning of both.

    By halving: equal beginnings of long texts are compared as whole slices, not token by token.
    """
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def families(rows: Sequence[Row], least: int = LEAST, most: int = MOST) -> list[Family]:
    """The texts in families, such that as much as possible is shared.

    In the order of their tokens, texts with a common beginning stand together. Of all ways to cut that order into
    families, dynamic programming finds the one that saves most: (members - 1) times the tokens that all members share.

    Args:
        rows: in any order.
        least: shorter beginnings are not shared.
        most: members of a family.
    """
    ordered = sorted(rows)
    free = [len(row.tokens) - row.scored for row in ordered]
    with_last = [0, *(common_prefix(a.tokens, b.tokens) for a, b in pairwise(ordered))]
    saved, begins = [0], [0]  # of the first n texts: the most that can be saved, and where their last family begins
    for end in range(1, len(ordered) + 1):
        best, begin, shared = saved[end - 1], end - 1, free[end - 1]
        for start in range(end - 2, max(end - most, 0) - 1, -1):
            shared = min(shared, with_last[start + 1], free[start])
            if shared < least:
                break
            value = saved[start] + shared * (end - start - 1)
            if value > best:
                best, begin = value, start
        saved.append(best)
        begins.append(begin)
    found: list[Family] = []
    end = len(ordered)
    while end:
        start = begins[end]
        members = ordered[start:end]
        shared = min(min(free[start:end]), *with_last[start + 1 : end]) if len(members) > 1 else 0
        found.append(Family(shared, members))
        end = start
    return found[::-1]
