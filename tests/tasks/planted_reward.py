"""Rewards of tests that are chosen by class_path, as a user's own would be."""

import math
import random
from itertools import pairwise


class Planted:
    """A fixed random number for every two letters that stand together, summed up.

    Args:
        scale: of the numbers.
    """

    def __init__(self, scale: float = 0.7) -> None:
        self.scale = scale

    def __call__(self, prompts, completions, **columns):
        return [sum(self._pair(*pair) for pair in pairwise(text)) for text in completions]

    def _pair(self, one: str, other: str) -> float:
        return self.scale * random.Random(one + other).gauss(0, 1)


def distinct(prompts, completions, **columns):
    """A function is a reward too: this one differs between short random texts."""
    return [float(len(set(text))) for text in completions]


def broken(prompts, completions, **columns):
    """Cannot score its second answer."""
    return [1.0, math.nan, *[1.0] * (len(completions) - 2)]


def short(prompts, completions, **columns):
    """Forgets one."""
    return [1.0] * (len(completions) - 1)
