"""Sentiment by a lexicon: a reward that needs no model."""

from functools import cached_property
from typing import Any


class Lexicon:
    """VADER's compound score in [-1, 1] (Hutto & Gilbert, 2014): how positive a text is.

    Args:
        whole: score prompt and answer together instead of the answer alone.
        scale: the score is multiplied by it; -1 rewards gloom.
    """

    def __init__(self, whole: bool = False, scale: float = 1.0) -> None:
        self.whole, self.scale = whole, scale

    @cached_property
    def _analyzer(self) -> Any:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError:
            raise ValueError("the lexicon reward needs VADER: pip install 'lightning_gpt[align]'") from None
        return SentimentIntensityAnalyzer()

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """Compound scores."""
        texts = [p + c for p, c in zip(prompts, completions)] if self.whole else completions
        return [self.scale * self._analyzer.polarity_scores(text)["compound"] for text in texts]
