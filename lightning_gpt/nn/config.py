"""The one description of a network: every architecture of the platform is a setting of these fields."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.nn.rope_scaling import RopeScaling

Position = Literal["learned", "sinusoidal", "rotary", "alibi", "none"]
Norm = Literal["layernorm", "rmsnorm"]
NormPlace = Literal["pre", "post", "sandwich"]
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
    """How order is told: learned table (GPT-2), sinusoidal table (Vaswani et al., 2017; made for embedding_multiplier:
    sqrt(n_embd)), rotary (Su et al., 2021; LLaMA), alibi (Press et al., 2022: scores fall with distance) or none."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths; larger reaches further. Only for position: rotary."""
    rope_fraction: float = 1.0
    """Share of each head that is turned (GPT-NeoX: 0.25). Only for position: rotary."""
    rope_scaling: RopeScaling | None = None
    """Change of the rotary wavelengths to read further than the network was trained; null = none."""
    window: int | None = None
    """Sliding window: a token sees itself and the window - 1 before it (Mistral); null = everything before."""
    window_pattern: str = "S"
    """Which layers have the window: one letter a layer, repeated. S = the window, L = everything (Gemma 2: SL)."""
    attention_scale: float | None = None
    """Factor on the scores; null = 1 / sqrt(head_dim) (Vaswani et al., 2017)."""
    attention_softcap: float | None = None
    """Squashes scores to (-c, c) by c tanh(x / c) (Gemma 2); null = off."""
    attention_sinks: bool = False
    """A learned logit per head that takes weight and gives nothing (gpt-oss, 2025; Xiao et al., 2023)."""
    value_skip: bool = False
    """Mixes the first layer's values into every later layer's, by a learned share (Zhou et al., 2024)."""
    input_skip: bool = False
    """Every block reads a learned mix of its input and the embedding (x0 of the nanoGPT speed-runs)."""
    norm: Norm = "layernorm"
    """LayerNorm (GPT-2) or RMSNorm (Zhang & Sennrich, 2019; LLaMA)."""
    norm_eps: float = 1e-5
    """Added to the variance (or mean square) in norms."""
    norm_affine: bool = True
    """Whether norms carry a learned gain (and, with bias, a learned shift)."""
    norm_place: NormPlace = "pre"
    """pre: before each branch, and a last one before the head (GPT-2); post: after each sum (Vaswani et al., 2017);
    sandwich: before and after each branch (Gemma 2)."""
    parallel_residual: bool = False
    """Attention and feed-forward read the same input and are added together (GPT-J, GPT-NeoX)."""
    residual_multiplier: float = 1.0
    """Factor on every branch before it is added (Granite)."""
    embedding_multiplier: float = 1.0
    """Factor on token embeddings (Vaswani et al., 2017 and Gemma: sqrt(n_embd))."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head before the dot product (Henry et al., 2020; Qwen3)."""
    qk_norm_affine: bool = False
    """Whether qk_norm carries a learned gain (Qwen3: true)."""
    qkv_bias: bool | None = None
    """Bias of queries, keys and values (Qwen2: true, with bias: false); null = as bias."""
    feed_forward: FeedForwardKind = "gelu_tanh"
    """Non-linearity of the feed-forward: relu, gelu (exact), gelu_tanh (GPT-2), relu2 (So et al., 2021) or gated:
    swiglu (Shazeer, 2020; LLaMA), geglu."""
    ffn_hidden: int | None = None
    """Hidden width of the feed-forward; null = 4 n_embd, or 8/3 n_embd rounded up to a multiple of ffn_multiple
    for gated ones (equal parameters)."""
    ffn_multiple: int = 64
    """Rounding of the hidden width of gated feed-forwards when ffn_hidden is null."""
    moe: MoEConfig | None = None
    """A mixture of experts in place of the feed-forward; null = dense. Experts have no biases."""
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
        for name in ("position", "norm", "norm_place", "feed_forward", "initialization"):
            allowed = next(f.type for f in fields(self) if f.name == name).__args__
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown: use one of {', '.join(allowed)}")
        self._check_positions()
        self._check_attention()
        if self.moe is not None:
            self._check_experts(self.moe)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is not a probability: use 0 <= dropout < 1")
        for name in ("norm_eps", "rope_theta", "init_std", "residual_multiplier", "embedding_multiplier"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in ("logit_softcap", "attention_softcap", "attention_scale"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive, or null for its default")
        if self.parallel_residual and self.norm_place != "pre":
            raise ValueError(
                f"parallel_residual=True with norm_place={self.norm_place}: both branches read one input, use "
                "norm_place=pre"
            )

    def _check_positions(self) -> None:
        if self.position != "rotary":
            for name, default in (("rope_fraction", 1.0), ("rope_scaling", None)):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name}={getattr(self, name)} has no meaning for position={self.position}: use position=rotary"
                    )
            return
        if not 0 < self.rope_fraction <= 1:
            raise ValueError(f"rope_fraction={self.rope_fraction} is no share of a head: use 0 < rope_fraction <= 1")
        if self.rope_fraction == 1 and self.head_size % 2:
            raise ValueError(f"head_dim={self.head_size} is odd, but rotary positions turn pairs: make it even")
        if self.rotary_size < 2 or self.rotary_size % 2:
            raise ValueError(
                f"rope_fraction={self.rope_fraction} turns {self.rotary_size} of head_dim={self.head_size} numbers, "
                "but rotary positions turn pairs: choose another fraction"
            )

    def _check_attention(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1 (the token itself), or null to see everything")
        if not self.window_pattern or set(self.window_pattern) - set("SL"):
            raise ValueError(
                f"window_pattern={self.window_pattern!r} must be letters S (the window) and L (everything), such as SSL"
            )
        if self.window is None and self.window_pattern != "S":
            raise ValueError(f"window_pattern={self.window_pattern!r} without a window: set window")
        if self.qk_norm_affine and not self.qk_norm:
            raise ValueError("qk_norm_affine=True without qk_norm: set qk_norm=True")

    def _check_experts(self, moe: MoEConfig) -> None:
        if not any(map(self.is_mixture, range(self.n_layer))):
            raise ValueError(
                f"moe.dense_first={moe.dense_first} and moe.every={moe.every} leave no layer of n_layer={self.n_layer} "
                "to the experts: lower them"
            )
        if self.expert_kind not in FeedForwardKind.__args__:
            raise ValueError(
                f"moe.feed_forward={moe.feed_forward!r} is unknown: use one of {', '.join(FeedForwardKind.__args__)}"
            )
        for name, value in (("n_embd", self.n_embd), ("moe.expert_hidden", self.expert_size)):
            if value % 8:
                raise ValueError(
                    f"{name}={value} is no multiple of 8, which the grouped matrix product of the experts needs: use "
                    f"{-(-value // 8) * 8}"
                )

    @property
    def head_size(self) -> int:
        """D, the width of one head."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.n_kv_head or self.n_head

    @property
    def rotary_size(self) -> int:
        """How many numbers of a head are turned."""
        return int(self.head_size * self.rope_fraction)

    @property
    def score_scale(self) -> float:
        """Factor on the scores."""
        return self.attention_scale if self.attention_scale is not None else 1 / math.sqrt(self.head_size)

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of each layer; None = it sees everything. A window of the whole context is none."""
        window = self.window if self.window is not None and self.window < self.block_size else None
        pattern = self.window_pattern
        return tuple(window if pattern[i % len(pattern)] == "S" else None for i in range(self.n_layer))

    @property
    def hidden_size(self) -> int:
        """Hidden width of the feed-forward."""
        if self.ffn_hidden is not None:
            return self.ffn_hidden
        if self.feed_forward in GATED:
            return -(-8 * self.n_embd // (3 * self.ffn_multiple)) * self.ffn_multiple
        return 4 * self.n_embd

    @property
    def expert_size(self) -> int:
        """Hidden width of one expert."""
        return (self.moe.expert_hidden if self.moe is not None else None) or self.hidden_size

    def is_mixture(self, layer: int) -> bool:
        """Whether this layer's feed-forward is a mixture of experts."""
        moe = self.moe
        return moe is not None and layer >= moe.dense_first and (layer - moe.dense_first + 1) % moe.every == 0

    @property
    def expert_kind(self) -> str:
        """Kind of the experts' feed-forward."""
        return (self.moe.feed_forward if self.moe is not None else None) or self.feed_forward

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
        parts = {"rope_scaling": RopeScaling, "moe": MoEConfig}
        built = {name: part(**values[name]) for name, part in parts.items() if isinstance(values.get(name), dict)}
        return cls(**(values | built))
