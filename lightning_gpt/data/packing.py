"""Several short examples in one row, so that little of a batch is padding."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Puts examples into rows by best-fit decreasing: the longest first, each into the fullest row that it still fits.

    At most 11/9 of the fewest possible rows and 6/9 more (Johnson, 1974); O(n log n).

    Args:
        lengths: tokens of each example, at most `size`.
        size: tokens of a row.

    Returns:
        the examples' numbers, row by row.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), ascending
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        assert lengths[index] <= size
        place = bisect_left(free, (lengths[index], -1))
        if place == len(free):
            room, row = size, len(rows)
            rows.append([])
        else:
            room, row = free.pop(place)
        rows[row].append(index)
        insort(free, (room - lengths[index], row))
    return rows
