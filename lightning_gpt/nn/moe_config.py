"""What a mixture of experts is made of; a part of GPTConfig."""

from dataclasses import dataclass
from typing import Literal

Routing = Literal["softmax", "sigmoid", "expert_choice"]
Balance = Literal["loss", "bias", "none"]


@dataclass(frozen=True)
class MoEConfig:
    """A mixture of experts in place of the feed-forward. The defaults are Mixtral's (Jiang et al., 2024).

    Legend: E experts, K experts a token.

    | published      | fields                                                                             |
    |----------------|------------------------------------------------------------------------------------|
    | Switch (2021)  | top_k: 1, renormalize: false, capacity_factor: 1.25                                |
    | GLaM (2022)    | top_k: 2, capacity_factor: 2                                                       |
    | OLMoE (2024)   | experts: 64, top_k: 8, renormalize: false                                          |
    | DeepSeek-V3    | routing: sigmoid, balance: bias, shared: 1, scale: 2.5, dense_first: 3             |
    | expert choice  | routing: expert_choice, capacity_factor: 2 (Zhou et al., 2022)                     |

    Raises:
        ValueError: a combination that cannot work.
    """

    experts: int = 8
    """E, experts of each layer."""
    top_k: int = 2
    """K, experts that each token is sent to."""
    routing: Routing = "softmax"
    """softmax over experts, then the K largest (Shazeer et al., 2017); sigmoid of each (DeepSeek-V3); expert_choice:
    each expert takes its tokens, which is not causal and so cannot generate."""
    renormalize: bool = True
    """Whether the K gates are divided by their sum (Mixtral: true; Switch, OLMoE: false). With top_k: 1 that makes
    every gate 1, and the router learns from its own losses alone."""
    scale: float = 1.0
    """Factor on the gates (DeepSeek-V3: 2.5)."""
    expert_hidden: int | None = None
    """Hidden width of one expert; null = that of the dense feed-forward."""
    shared: int = 0
    """How many experts more every token visits, without a gate (DeepSeekMoE, Dai et al., 2024)."""
    dense_first: int = 0
    """How many of the first layers keep a dense feed-forward."""
    every: int = 1
    """Of the layers after them, every n-th has experts, the n-th first (Switch, GLaM: 2)."""
    feed_forward: str | None = None
    """Kind of the experts' feed-forward; null = that of the dense ones."""
    capacity_factor: float | None = None
    """Tokens that an expert takes at most: this times the even share, rounded up; what is beyond is dropped, first
    choices before second, early tokens before late. null = none is dropped; in expert_choice, 1."""
    balance: Balance = "loss"
    """loss: Switch's balance loss; bias: a bias on the choice that follows the load (Wang et al., 2024); none."""
    balance_coefficient: float = 0.01
    """Weight of the balance loss (Fedus et al., 2021: 0.01)."""
    z_coefficient: float = 0.001
    """Weight of the router's z-loss (Zoph et al., 2022: 0.001); 0 = off."""
    bias_rate: float = 0.001
    """balance: bias: what an expert's bias gains or loses each optimizer step (DeepSeek-V3: 0.001)."""
    jitter: float = 0.0
    """While training the router's input is multiplied by uniform(1 - jitter, 1 + jitter) (Fedus et al., 2021)."""

    def __post_init__(self) -> None:
        for name, allowed in (("routing", Routing.__args__), ("balance", Balance.__args__)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"moe.{name}={getattr(self, name)!r} is unknown: use one of {', '.join(allowed)}")
        if self.experts < 1:
            raise ValueError(f"moe.experts={self.experts} must be at least 1")
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"moe.top_k={self.top_k} must be between 1 and moe.experts={self.experts}")
        for name in ("shared", "dense_first", "balance_coefficient", "z_coefficient", "bias_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"moe.{name}={getattr(self, name)} must not be negative")
        if self.every < 1:
            raise ValueError(f"moe.every={self.every} must be at least 1 (every layer)")
        if self.scale <= 0:
            raise ValueError(f"moe.scale={self.scale} must be positive")
        if self.capacity_factor is not None and self.capacity_factor <= 0:
            raise ValueError(f"moe.capacity_factor={self.capacity_factor} must be positive, or null to drop no token")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"moe.jitter={self.jitter} must be in [0, 1)")
        if self.expert_hidden is not None and self.expert_hidden < 8:
            raise ValueError(f"moe.expert_hidden={self.expert_hidden} must be at least 8, or null for the dense width")
        if self.routing == "expert_choice" and self.balance == "bias":
            raise ValueError("moe.balance=bias with moe.routing=expert_choice: loads are equal there, use balance=none")
