"""The one description of a network: every architecture of the platform is a setting of these fields."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Position = Literal["learned", "rotary", "none"]
Norm = Literal["layernorm", "rmsnorm"]
FeedForwardKind = Literal["relu", "gelu", "gelu_tanh", "relu2", "swiglu", "geglu"]
Initialization = Literal["gpt2", "zero_output"]

GATED: tuple[str, ...] = ("swiglu", "geglu")


@dataclass(frozen=True)
class GPTConfig:
    """Shape and parts of a decoder-only transformer. The defaults are GPT-2 124M (Radford et al., 2019).

    Raises:
        ValueError: a combination that cannot work; the message names field, value and mend.
    """

    vocab_size: int = 50257
    """Number of token ids. `lightning-gpt fit` takes it from the data, so it is not set by hand there."""
    block_size: int = 1024
    """Longest context in tokens (T). `lightning-gpt fit` takes it from the data."""
    n_layer: int = 12
    """Number of transformer blocks (L)."""
    n_head: int = 12
    """Number of query heads (H)."""
    n_embd: int = 768
    """Width of the residual stream (C)."""
    n_kv_head: int | None = None
    """Number of key/value heads: null = n_head (multi-head), 1 = multi-query (Shazeer, 2019), between = grouped-query
    attention (Ainslie et al., 2023). Must divide n_head."""
    head_dim: int | None = None
    """Width of one head (D); null = n_embd / n_head."""
    position: Position = "learned"
    """How order is told: learned table (GPT-2), rotary (Su et al., 2021; LLaMA) or none."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths; larger reaches further. Only for position: rotary."""
    norm: Norm = "layernorm"
    """LayerNorm (GPT-2) or RMSNorm (Zhang & Sennrich, 2019; LLaMA)."""
    norm_eps: float = 1e-5
    """Added to the variance (or mean square) in norms."""
    norm_affine: bool = True
    """Whether norms carry a learned gain (and, with bias, a learned shift)."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head before the dot product (Henry et al., 2020; Qwen3)."""
    feed_forward: FeedForwardKind = "gelu_tanh"
    """Non-linearity of the feed-forward: relu, gelu (exact), gelu_tanh (GPT-2), relu2 (So et al., 2021) or gated:
    swiglu (Shazeer, 2020; LLaMA), geglu."""
    ffn_hidden: int | None = None
    """Hidden width of the feed-forward; null = 4 n_embd, or 8/3 n_embd rounded up to a multiple of ffn_multiple
    for gated ones (equal parameters)."""
    ffn_multiple: int = 64
    """Rounding of the hidden width of gated feed-forwards when ffn_hidden is null."""
    bias: bool = True
    """Bias in linear layers and shift in LayerNorm (GPT-2: true; LLaMA: false)."""
    tie_embeddings: bool = True
    """Whether the output head shares its matrix with the token embedding (Press & Wolf, 2017)."""
    vocab_multiple: int = 1
    """Pads the embedding and head up to this multiple of rows (64 or 128 suits tensor cores); padded ids are cut
    from the logits."""
    logit_softcap: float | None = None
    """Squashes logits to (-c, c) by c tanh(x / c) (Gemma 2); null = off."""
    dropout: float = 0.0
    """Dropout probability of embeddings, attention weights and residual branches while training."""
    initialization: Initialization = "gpt2"
    """gpt2: normal(0, init_std), residual projections scaled by 1/sqrt(2 n_layer); zero_output: residual projections
    and an untied head start at zero, other matrices uniform(±sqrt(3/fan_in)) (see nn/initialization.py)."""
    init_std: float = 0.02
    """Standard deviation of the gpt2 initialisation."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "vocab_multiple", "ffn_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("head_dim", "ffn_hidden"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1, or null to follow n_embd")
        if self.head_dim is None and self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}: choose "
                f"n_embd={self.n_embd // self.n_head * self.n_head or self.n_head}, another n_head, or set head_dim"
            )
        if self.n_kv_head is not None and (self.n_kv_head < 1 or self.n_head % self.n_kv_head):
            divisors = [d for d in range(1, self.n_head + 1) if self.n_head % d == 0]
            raise ValueError(f"n_kv_head={self.n_kv_head} does not divide n_head={self.n_head}: use one of {divisors}")
        if self.position == "rotary" and self.head_size % 2:
            raise ValueError(f"head_dim={self.head_size} is odd, but rotary positions turn pairs: make it even")
        for name in ("position", "norm", "feed_forward", "initialization"):
            allowed = next(f.type for f in fields(self) if f.name == name).__args__
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown: use one of {', '.join(allowed)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is not a probability: use 0 <= dropout < 1")
        for name in ("norm_eps", "rope_theta", "init_std"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if self.logit_softcap is not None and self.logit_softcap <= 0:
            raise ValueError(f"logit_softcap={self.logit_softcap} must be positive, or null to switch it off")

    @property
    def head_size(self) -> int:
        """D, the width of one head."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.n_kv_head or self.n_head

    @property
    def hidden_size(self) -> int:
        """Hidden width of the feed-forward."""
        if self.ffn_hidden is not None:
            return self.ffn_hidden
        if self.feed_forward in GATED:
            return -(-8 * self.n_embd // (3 * self.ffn_multiple)) * self.ffn_multiple
        return 4 * self.n_embd

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of the head."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def to_dict(self) -> dict[str, Any]:
        """Every field, as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GPTConfig":
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key that is no field of this version.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown model field(s) {', '.join(unknown)}: written by another version?")
        return cls(**values)
