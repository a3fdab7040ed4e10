"""Published language models on the compute frontier: how far from the best split of their budget each one was."""

import math
from dataclasses import dataclass

from lightning_gpt.planning.laws import PARAMETRIC, ParametricLaw

ABOUT = 2.0
"""Tokens a parameter within this factor of the optimum at equal compute count as about optimal: the published fits
themselves differ by more."""


@dataclass(frozen=True)
class Published:
    """A trained model."""

    name: str
    parameters: float
    tokens: float
    source: str


PUBLISHED = (
    Published("GPT-3 175B", 175e9, 300e9, "Brown et al., 2020, table 2.1"),
    Published("Jurassic-1 178B", 178e9, 300e9, "Lieber et al., 2021"),
    Published("Gopher 280B", 280e9, 300e9, "Rae et al., 2021"),
    Published("MT-NLG 530B", 530e9, 270e9, "Smith et al., 2022"),
    Published("PaLM 540B", 540e9, 780e9, "Chowdhery et al., 2022"),
    Published("Chinchilla 70B", 70e9, 1.4e12, "Hoffmann et al., 2022, table 1"),
    Published("LLaMA 7B", 6.7e9, 1.0e12, "Touvron et al., 2023a, table 2"),
    Published("LLaMA 13B", 13.0e9, 1.0e12, "Touvron et al., 2023a, table 2"),
    Published("LLaMA 33B", 32.5e9, 1.4e12, "Touvron et al., 2023a, table 2"),
    Published("LLaMA 65B", 65.2e9, 1.4e12, "Touvron et al., 2023a, table 2"),
    Published("LLaMA 2 7B", 6.7e9, 2.0e12, "Touvron et al., 2023b, table 1"),
    Published("LLaMA 2 13B", 13.0e9, 2.0e12, "Touvron et al., 2023b, table 1"),
    Published("LLaMA 2 70B", 69.0e9, 2.0e12, "Touvron et al., 2023b, table 1"),
    Published("LLaMA 3 8B", 8.0e9, 15e12, "Dubey et al., 2024"),
    Published("LLaMA 3 70B", 70.6e9, 15e12, "Dubey et al., 2024"),
    Published("LLaMA 3.1 405B", 405e9, 15.6e12, "Dubey et al., 2024, section 3.2"),
    Published("SmolLM2 1.7B", 1.7e9, 11e12, "Allal et al., 2025"),
)


@dataclass(frozen=True)
class Judgement:
    """A pair of N and D against the best pair of equal compute (6ND, or the law's own count)."""

    parameters: float
    tokens: float
    flops: float
    best_parameters: float
    best_tokens: float
    loss: float
    best_loss: float
    equal_parameters: float
    """N of the least compute that reaches the same loss,"""
    equal_flops: float
    """and that compute."""

    @property
    def skew(self) -> float:
        """Tokens a parameter over those of the optimum."""
        return (self.tokens / self.parameters) / (self.best_tokens / self.best_parameters)

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.skew < 1 / ABOUT:
            return "under-trained"
        return "over-trained" if self.skew > ABOUT else "about optimal"

    @property
    def break_even_tokens(self) -> float | None:
        """Tokens served after which a network smaller than the best for its loss has paid for its longer training: its
        extra 6ND over the 2N saved on each token (Sardana et al., 2024, section 3). None: it is not smaller."""
        if self.parameters >= self.equal_parameters:
            return None
        return (self.flops - self.equal_flops) / (2 * (self.equal_parameters - self.parameters))

    @property
    def remark(self) -> str:
        """What it means for who serves the network."""
        if self.verdict == "about optimal":
            return "cheapest to train; a smaller one for longer is cheaper to serve"
        served = self.break_even_tokens
        if served is None:
            more = self.parameters / self.equal_parameters
            return f"{more:.3g} times as large as its loss needs, to train and to serve"
        return f"smaller than its loss needs: pays after {short(served)} tokens served"


def judge(law: ParametricLaw, parameters: float, tokens: float) -> Judgement:
    """A pair under a law."""
    flops = law.cost.flops(parameters, tokens)
    best = law.optimum(flops)
    loss = law.loss(parameters, tokens)
    equal_flops = min(flops, law.flops_for_loss(loss))  # rounding must not make the optimum beat itself
    return Judgement(parameters, tokens, flops, *best, loss, law.loss(*best), law.optimum(equal_flops)[0], equal_flops)


def lost_range(parameters: float, tokens: float) -> tuple[float, float]:
    """Least and most loss above the optimum at equal compute, over the published fits."""
    judged = [judge(law, parameters, tokens) for law in PARAMETRIC]
    lost = [one.loss - one.best_loss for one in judged]
    return min(lost), max(lost)


def short(number: float, digits: int = 3) -> str:
    """1.4e12 -> "1.4 T"."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= 0.9995 * factor:
            value = number / factor
            return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.{digits}g} {unit}"
    return f"{number:.{digits}g}"


def published_table(law: ParametricLaw) -> str:
    """Markdown: a row a model."""
    head = "| model | parameters | tokens | training FLOPs (6ND) | tokens / parameter | best at equal FLOPs | "
    head += "verdict | loss lost (all fits) | who serves it |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for model in PUBLISHED:
        one = judge(law, model.parameters, model.tokens)
        low, high = lost_range(model.parameters, model.tokens)
        lines.append(
            f"| {model.name} | {short(one.parameters)} | {short(one.tokens)} | {one.flops:.2e} | "
            f"{one.tokens / one.parameters:.3g} | {short(one.best_parameters)} on {short(one.best_tokens)} "
            f"({one.best_tokens / one.best_parameters:.3g}) | {one.verdict} | "
            f"{one.loss - one.best_loss:.3f} ({low:.3f} to {high:.3f}) | {one.remark} |"
        )
    return "\n".join(lines)
