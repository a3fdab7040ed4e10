"""How many tokens a draft should have: what is kept against what it costs.

With a token kept with probability a, independently, a draft of k tokens gives (1 - a^(k+1)) / (1 - a) tokens a step
(Leviathan et al., 2023, equation 1).
"""

from bisect import bisect_left


def expected_tokens(acceptance: float, length: int) -> float:
    """Tokens that a step makes with a draft of this length."""
    if acceptance >= 1:
        return length + 1.0
    return (1 - acceptance ** (length + 1)) / (1 - acceptance)


class Acceptance:
    """The share of a text's drafted tokens that were kept, recent ones counting more.

    A token behind a rejected one was not judged and does not count.

    Args:
        prior: what is assumed at the beginning.
        weight: tokens that the assumption is worth.
        memory: by what older tokens shrink with each draft.
    """

    def __init__(self, prior: float = 0.6, weight: float = 2.0, memory: float = 0.9) -> None:
        self._kept, self._judged, self._memory = prior * weight, weight, memory

    @property
    def rate(self) -> float:
        """The estimate."""
        return self._kept / self._judged

    def add(self, proposed: int, kept: int) -> None:
        """The outcome of a draft."""
        self._kept = self._kept * self._memory + kept
        self._judged = self._judged * self._memory + min(kept + 1, proposed)


class StepTimes:
    """Seconds that a step takes by the number of its tokens, as far as steps were seen.

    Between two numbers that were seen, and beyond them, it is guessed: along the line between, and with a twentieth
    more for each token beyond.

    Args:
        memory: of the running mean.
    """

    BEYOND = 0.05

    def __init__(self, memory: float = 0.8) -> None:
        self._memory = memory
        self._tokens: list[int] = []
        self._seconds: dict[int, float] = {}

    def add(self, tokens: int, seconds: float) -> None:
        """A step took so long. An outlier counts as twice the mean at most."""
        known = self._seconds.get(tokens)
        if known is None:
            self._tokens.insert(bisect_left(self._tokens, tokens), tokens)
            self._seconds[tokens] = seconds
        else:
            self._seconds[tokens] = self._memory * known + (1 - self._memory) * min(seconds, 2 * known)

    def knows(self, tokens: int) -> bool:
        """Whether a step of so many tokens was seen."""
        return tokens in self._seconds

    def predict(self, tokens: int) -> float:
        """Seconds of a step; at least one must have been seen."""
        place = bisect_left(self._tokens, tokens)
        if place < len(self._tokens) and self._tokens[place] == tokens:
            return self._seconds[tokens]
        if place == 0:
            return self._seconds[self._tokens[0]]
        below = self._tokens[place - 1]
        low = self._seconds[below]
        if place == len(self._tokens):
            return low * (1 + self.BEYOND * (tokens - below) / below)
        above = self._tokens[place]
        high = self._seconds[above]
        return low + max(high - low, 0.0) * (tokens - below) / (above - below)


def best_length(
    acceptance: float, most: int, rows: int, times: StepTimes, draft_seconds: float, margin: float = 1.03
) -> tuple[int, float]:
    """The length of the most tokens a second, and by what it is faster than none.

    Args:
        acceptance: of this text.
        most: longest length.
        rows: texts in the step, all of which are taken to have drafts of the same length.
        times: of the network's steps.
        draft_seconds: that one more drafted token of all of them takes.
        margin: a draft must promise at least this to be made at all.

    Returns:
        (0, 1.0) where no draft pays.
    """
    plain = times.predict(rows)
    best, gain = 0, 1.0
    for length in range(1, most + 1):
        cost = times.predict(rows * (1 + length)) + length * draft_seconds
        ratio = expected_tokens(acceptance, length) * plain / cost
        if ratio >= margin and ratio > gain:
            best, gain = length, ratio
    return best, gain
