"""What a reward is, and the look at its numbers before anything is learnt from them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

Reward = Callable[..., Sequence[float]]
"""reward(prompts, completions, **columns) -> one number an answer, higher is better. A function, or an object with
settings that can be called: a model, a lexicon, a verifier or a judge is behind it.

- prompts: list[str], what was asked.
- completions: list[str], what was answered, special tokens left out.
- columns: lists, the other columns of the data's rows, for those that need them (a right answer, say).
"""


def checked(reward: Reward, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]) -> list[float]:
    """The reward's numbers.

    Raises:
        ValueError: a number is missing, NaN or infinite; the answer is named.
    """
    name = getattr(reward, "__name__", type(reward).__name__)
    scores = list(reward(prompts, completions, **columns))
    if len(scores) != len(completions):
        raise ValueError(f"the reward {name} gave {len(scores)} numbers for {len(completions)} answers: give one each")
    for row, score in enumerate(scores):
        if score is None or not math.isfinite(score):
            raise ValueError(
                f"the reward {name} is {score} for row {row}, prompt {prompts[row][-60:]!r}, answer "
                f"{completions[row][:60]!r}: nothing was updated; mend the reward or leave the row out"
            )
    return [float(score) for score in scores]
