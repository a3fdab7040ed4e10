"""Loss as a function of parameters and tokens, and the split of compute that makes it least.

Legend: N parameters, D training tokens, C training FLOPs, L loss in nats a token.

Which law is the default, and why. Hoffmann et al. (2022, "Chinchilla") estimate the best N and D for a budget in three
ways. Approaches 1 and 2 and the model they then trained (70 G parameters, 1.4 T tokens) agree on about 20 tokens a
parameter. Approach 3, the parametric law below, does not: as printed in equation 10 it asks for more than 90 tokens a
parameter at Chinchilla's budget. Besiroglu et al. (2024) found two reasons: the printed constants are rounded (their
TeX source has more digits, and gives about 60), and the fit had stopped before it converged, because the loss was
averaged instead of summed and so too small for the optimizer's tolerance. Their own fit of the same runs agrees with
approaches 1 and 2, so `besiroglu` is the default here. The others stay, to be compared and for the spread of what the
same experiments have been taken to say.
"""

from dataclasses import dataclass
from typing import Literal

Count = Literal["all", "body"]
"""all: every parameter, embeddings included (Hoffmann et al., 2022, appendix F); body: without them (Kaplan et al.)."""


@dataclass(frozen=True)
class Cost:
    """Training FLOPs of N parameters and D tokens: C = factor * N^power * D."""

    factor: float = 6.0
    """The defaults are C = 6ND: two operations a multiply-add, and twice the forward's for the backward pass (Kaplan
    et al., 2020, section 2.1). They leave out attention's scores and, where N has no embeddings, the head."""
    power: float = 1.0
    """Below 1 where small networks spend more FLOPs a parameter than large ones."""

    def flops(self, parameters: float, tokens: float) -> float:
        """C of N and D."""
        return self.factor * parameters**self.power * tokens

    def tokens(self, flops: float, parameters: float) -> float:
        """D that C pays for."""
        return flops / (self.factor * parameters**self.power)


SIX_ND = Cost()


@dataclass(frozen=True)
class ParametricLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al., 2022, equation 2).

    With C = factor * N^power * D the minimum of L at a given C is where alpha A / N^alpha = power beta B / D^beta, so

        N_opt = G (C / factor)^a,  a = beta / (alpha + power beta),  G = (alpha A / (power beta B))^(1 / (alpha + power
        beta)),  D_opt = (C / factor) / N_opt^power ~ C^b,  b = alpha / (alpha + power beta)

    which for 6ND is their equation 4.
    """

    name: str
    E: float
    """Loss that no size and no amount of tokens goes below: the entropy of the text, in nats a token."""
    A: float
    B: float
    alpha: float
    beta: float
    cost: Cost = SIX_ND
    counts: Count = "all"
    """What N counts."""
    source: str = ""

    def loss(self, parameters: float, tokens: float) -> float:
        """L of N and D."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    @property
    def a(self) -> float:
        """N_opt grows as C^a."""
        return self.beta / (self.alpha + self.cost.power * self.beta)

    @property
    def b(self) -> float:
        """D_opt grows as C^b."""
        return self.alpha / (self.alpha + self.cost.power * self.beta)

    @property
    def G(self) -> float:
        """See the class."""
        power = self.cost.power
        return (self.alpha * self.A / (power * self.beta * self.B)) ** (1 / (self.alpha + power * self.beta))

    def optimum(self, flops: float) -> tuple[float, float]:
        """(N, D) of the least loss for C."""
        parameters = self.G * (flops / self.cost.factor) ** self.a
        return parameters, self.cost.tokens(flops, parameters)

    def optimal_tokens(self, parameters: float) -> float:
        """D for which N is the best size."""
        return self.cost.tokens(self.cost.factor * (parameters / self.G) ** (1 / self.a), parameters)

    def optimal_parameters(self, tokens: float) -> float:
        """N for which D is the best number of tokens."""
        power = self.cost.power
        return (self.alpha * self.A / (power * self.beta * self.B) * tokens**self.beta) ** (1 / self.alpha)

    def frontier_loss(self, flops: float) -> float:
        """The least loss for C."""
        return self.loss(*self.optimum(flops))

    def flops_for_loss(self, loss: float) -> float:
        """C with which the best split reaches a loss; the frontier is E + K (C / factor)^(-alpha a).

        Raises:
            ValueError: a loss at or below E, which none reaches.
        """
        if loss <= self.E:
            raise ValueError(f"loss={loss:g} is not above E={self.E:g}, which the law {self.name} never goes below")
        G, factor = self.G, self.cost.factor
        scale = self.A * G**-self.alpha + self.B * G ** (self.cost.power * self.beta)
        return factor * ((loss - self.E) / scale) ** (-1 / (self.alpha * self.a))


@dataclass(frozen=True)
class Allocation:
    """A law of the best split alone: D_opt = tokens * (N / parameters)^power, with C = 6ND."""

    name: str
    parameters: float
    """N of one point on the line,"""
    tokens: float
    """and its D."""
    power: float
    """b / a."""
    counts: Count = "all"
    source: str = ""
    cost: Cost = SIX_ND

    @property
    def a(self) -> float:
        """N_opt grows as C^a."""
        return 1 / (1 + self.power)

    @property
    def b(self) -> float:
        """D_opt grows as C^b."""
        return self.power / (1 + self.power)

    def optimum(self, flops: float) -> tuple[float, float]:
        """(N, D) for C."""
        parameters = self.parameters * (flops / self.cost.flops(self.parameters, self.tokens)) ** self.a
        return parameters, self.cost.tokens(flops, parameters)

    def optimal_tokens(self, parameters: float) -> float:
        """D for which N is the best size."""
        return self.tokens * (parameters / self.parameters) ** self.power

    def optimal_parameters(self, tokens: float) -> float:
        """N for which D is the best number of tokens."""
        return self.parameters * (tokens / self.tokens) ** (1 / self.power)


BESIROGLU = ParametricLaw(
    "besiroglu", 1.8172, 482.01, 2085.43, 0.3478, 0.3658, source="Besiroglu et al., 2024, arXiv 2404.10102, table 1"
)
HOFFMANN = ParametricLaw(
    "hoffmann",
    1.69337368,
    406.401018,
    410.722827,
    0.33917084,
    0.2849083,
    source="Hoffmann et al., 2022, arXiv 2203.15556, approach 3 with the digits of the TeX source",
)
HOFFMANN_ROUNDED = ParametricLaw(
    "hoffmann-rounded", 1.69, 406.4, 410.7, 0.34, 0.28, source="Hoffmann et al., 2022, equation 10 as printed"
)
APPROACH_1 = Allocation(
    "approach-1", 1e10, 205.1e9, 1.00763, source="Hoffmann et al., 2022, section 3.1; the line through table 3"
)
APPROACH_2 = Allocation(
    "approach-2", 1e10, 219.5e9, 1.04132, source="Hoffmann et al., 2022, section 3.2; the line through table A3"
)
APPROACH_3 = Allocation(
    "approach-3",
    1e10,
    410.1e9,
    1.18036,
    source="Hoffmann et al., 2022, section 3.3; the line through table A3, with FLOPs counted exactly",
)
PARAMETRIC = (BESIROGLU, HOFFMANN, HOFFMANN_ROUNDED)
"""The published L(N, D) of one and the same runs: their spread is how far readings of these differ."""
