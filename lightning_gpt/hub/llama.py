"""LLaMA (Touvron et al., 2023) and its relatives as transformers stores them: Mistral with a sliding window, Qwen2
with biases of queries, keys and values, Qwen3 with normalised queries and keys, Mixtral with experts."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from lightning_gpt.hub.family import Family, TensorMap, beyond, outside
from lightning_gpt.hub.rope import from_rope, to_rope
from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn.moe_config import MoEConfig

TO_ACTIVATION = {"swiglu": "silu", "geglu": "gelu", "relu2": "relu"}
"""relu2 is not gated, but relu(x)^2 = relu(x) x: with the same matrix as gate and as up it is, exactly."""
FROM_ACTIVATION = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}
EXPRESSIBLE = (
    *("n_kv_head", "head_dim", "rope_theta", "rope_scaling", "qk_norm", "qk_norm_affine", "qkv_bias"),
    *("window", "window_pattern", "moe"),
)
"""Fields that at least one relative writes down; what each lacks of them is checked one by one."""
FREE_IN_MIXTRAL = (
    *("experts", "top_k", "expert_hidden"),
    *("balance", "balance_coefficient", "z_coefficient", "bias_rate", "jitter"),
)
"""Fields of a mixture that may have any value there; the second line acts only in training."""
PATTERN = {"S": "sliding_attention", "L": "full_attention"}


@dataclass(frozen=True)
class Relative:
    """Where an architecture departs from the others."""

    model_type: str
    architecture: str
    biases: Literal["all or none", "qkv", "none"] = "none"
    windows: Literal["none", "all", "by layer"] = "none"
    qk_norm: bool = False
    experts: bool = False
    any_head_dim: bool = True
    """Whether a head may be other than n_embd / n_head wide."""
    vocab_size: int = 32000
    block_size: int = 4096 * 32
    n_kv_head: int | None = None
    ffn_hidden: int = 14336
    norm_eps: float = 1e-6
    """Defaults of its configuration class."""


RELATIVES = (
    Relative("llama", "LlamaForCausalLM", "all or none", any_head_dim=False, block_size=2048, ffn_hidden=11008),
    Relative("mistral", "MistralForCausalLM", windows="all", n_kv_head=8),
    Relative(
        "qwen2",
        "Qwen2ForCausalLM",
        "qkv",
        windows="by layer",
        any_head_dim=False,
        vocab_size=151936,
        block_size=32768,
        n_kv_head=32,
        ffn_hidden=22016,
    ),
    Relative(
        "qwen3",
        "Qwen3ForCausalLM",
        windows="by layer",
        qk_norm=True,
        vocab_size=151936,
        block_size=32768,
        n_kv_head=32,
        ffn_hidden=22016,
    ),
    Relative("mixtral", "MixtralForCausalLM", windows="all", experts=True, n_kv_head=8, norm_eps=1e-5),
)


def obstacles(config: GPTConfig, relative: Relative) -> list[str]:
    """Fields that the architecture has no counterpart for."""
    found = outside(config, position=("rotary",), norm=("rmsnorm",), feed_forward=TO_ACTIVATION)
    if config.qk_norm != relative.qk_norm:
        found.append(f"qk_norm={config.qk_norm}")
    if config.bias and relative.biases != "all or none":
        found.append("bias=True")
    if config.has_qkv_bias != (relative.biases == "qkv" or config.bias):
        found.append(f"qkv_bias={config.has_qkv_bias}")
    if not relative.any_head_dim and config.head_size * config.n_head != config.n_embd:
        found.append(f"head_dim={config.head_dim}")  # transformers refuses it or leaves no key for it
    windows = set(config.windows)
    if relative.windows == "none" and windows != {None}:
        found.append(f"window={config.window}")
    if relative.windows == "all" and len(windows) > 1:
        found.append(f"window_pattern={config.window_pattern}")
    if (config.moe is not None) != relative.experts:
        found.append("moe" if config.moe is not None else "moe=None")
    elif relative.experts:
        found += _expert_obstacles(config)
    return found + beyond(config, EXPRESSIBLE)


def _expert_obstacles(config: GPTConfig) -> list[str]:
    """Fields of a mixture that Mixtral has no counterpart for."""
    moe = config.moe
    found = [] if config.feed_forward in ("swiglu", "geglu") else [f"feed_forward={config.feed_forward}"]
    for name, default in asdict(MoEConfig()).items():
        if name not in FREE_IN_MIXTRAL and getattr(moe, name) != default:
            found.append(f"moe.{name}={getattr(moe, name)}")
    # A bias on the choice would choose other experts than Mixtral's router does.
    return found + (["moe.balance=bias"] if moe.balance == "bias" else [])


def to_config(config: GPTConfig, relative: Relative) -> dict[str, Any]:
    """config.json of an expressible network."""
    values = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "hidden_size": config.n_embd,
        "intermediate_size": config.expert_size if relative.experts else config.hidden_size,
        "hidden_act": TO_ACTIVATION[config.feed_forward],
        "rms_norm_eps": config.norm_eps,
        **to_rope(config),
        "attention_dropout": config.dropout,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if relative.model_type != "qwen2":
        values["head_dim"] = config.head_size
    if relative.biases == "all or none":
        values |= {"attention_bias": config.bias, "mlp_bias": config.bias}
    if relative.experts:
        moe = config.moe
        values |= {
            "num_local_experts": moe.experts,
            "num_experts_per_tok": moe.top_k,
            "router_aux_loss_coef": moe.balance_coefficient if moe.balance == "loss" else 0.0,
            "router_jitter_noise": moe.jitter,
        }
    window = next((window for window in config.windows if window), None)
    if relative.windows != "none":
        values["sliding_window"] = window
    if relative.windows == "by layer":
        letters = ["S" if each else "L" for each in config.windows]
        first = letters.index("S") if window else config.n_layer
        values |= {
            "use_sliding_window": window is not None,
            "max_window_layers": first,
            "layer_types": [PATTERN[letter] for letter in letters],
        }
    return values


def from_config(theirs: dict[str, Any], relative: Relative) -> GPTConfig:
    """The inverse, of any config.json of the architecture (defaults as in transformers).

    Raises:
        ValueError: a setting that we have no counterpart for.
    """
    activation = theirs.get("hidden_act", "silu")
    if activation not in FROM_ACTIVATION:
        raise ValueError(f"hidden_act={activation!r} is not supported: {', '.join(FROM_ACTIVATION)} are")
    if theirs.get("attention_bias") and relative.biases == "none":
        raise ValueError(f"attention_bias=True is not supported in {relative.model_type}")
    layers = theirs.get("num_hidden_layers", 32)
    heads, width = theirs.get("num_attention_heads", 32), theirs.get("hidden_size", 4096)
    return GPTConfig(
        vocab_size=theirs.get("vocab_size", relative.vocab_size),
        block_size=theirs.get("max_position_embeddings", relative.block_size),
        n_layer=layers,
        n_head=heads,
        n_kv_head=theirs.get("num_key_value_heads", relative.n_kv_head),
        head_dim=theirs.get("head_dim", 128 if relative.qk_norm else None),
        n_embd=width,
        ffn_hidden=theirs.get("intermediate_size", relative.ffn_hidden),
        position="rotary",
        **from_rope(theirs),
        **_windows(theirs, relative, layers),
        moe=_experts(theirs) if relative.experts else None,
        norm="rmsnorm",
        norm_eps=theirs.get("rms_norm_eps", relative.norm_eps),
        feed_forward=FROM_ACTIVATION[activation],
        bias=bool(theirs.get("attention_bias", False) or theirs.get("mlp_bias", False)),
        qkv_bias=True if relative.biases == "qkv" else None,
        init_std=theirs.get("initializer_range", 0.02),
        tie_embeddings=theirs.get("tie_word_embeddings", False),
        qk_norm=relative.qk_norm,
        qk_norm_affine=relative.qk_norm,
    )


def _experts(theirs: dict[str, Any]) -> MoEConfig:
    """The mixture (Mixtral's defaults as in transformers)."""
    coefficient = theirs.get("router_aux_loss_coef", 0.001)
    return MoEConfig(
        experts=theirs.get("num_local_experts", 8),
        top_k=theirs.get("num_experts_per_tok", 2),
        balance="loss" if coefficient else "none",
        balance_coefficient=coefficient,
        z_coefficient=0.0,
        jitter=theirs.get("router_jitter_noise", 0.0),
    )


def _windows(theirs: dict[str, Any], relative: Relative, layers: int) -> dict[str, Any]:
    """window and window_pattern."""
    window = theirs.get("sliding_window", None if relative.experts else 4096)
    if relative.windows == "none" or window is None:
        return {}
    if relative.windows == "all":
        return {"window": window}
    if not theirs.get("use_sliding_window", False):
        return {}
    first = theirs.get("max_window_layers", 28)
    types = theirs.get("layer_types") or [PATTERN["S" if layer >= first else "L"] for layer in range(layers)]
    letters = {theirs: ours for ours, theirs in PATTERN.items()}
    unknown = sorted(set(types) - set(letters))
    if unknown:
        raise ValueError(f"layer_types with {', '.join(unknown)} are not supported: {', '.join(letters)} are")
    return {"window": window, "window_pattern": "".join(letters[kind] for kind in types)}


def tensors(config: GPTConfig) -> Iterator[TensorMap]:
    """Every tensor. Their q, k, v are our qkv; their gate and up are our gate_up."""
    C, F, V, D = config.n_embd, config.hidden_size, config.vocab_size, config.head_size
    q, kv = config.n_head * D, config.kv_heads * D
    yield TensorMap("token_embedding.weight", ("model.embed_tokens.weight",), (V, C))
    for layer in range(config.n_layer):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        yield _norm(config, ours + "attention_norm", theirs + "input_layernorm")
        attention = tuple(f"{theirs}self_attn.{part}_proj" for part in "qkv")
        yield from _linear(ours + "attention.qkv", attention, (q, kv, kv), C, config.has_qkv_bias)
        yield from _linear(ours + "attention.out", (theirs + "self_attn.o_proj",), (C,), q, config.bias)
        if config.qk_norm:
            for part in "qk":
                gain = f"{ours}attention.{part}_gain" if config.qk_norm_affine else None
                yield TensorMap(gain, (f"{theirs}self_attn.{part}_norm.weight",), (D,), fill=1.0)
        yield _norm(config, ours + "feed_forward_norm", theirs + "post_attention_layernorm")
        gate_up = (theirs + "mlp.gate_proj", theirs + "mlp.up_proj")
        if config.is_mixture(layer):
            yield from _mixture(config, ours + "feed_forward.", theirs + "block_sparse_moe.")
            continue
        if config.feed_forward == "relu2":
            yield from _linear(ours + "feed_forward.up", gate_up, (F,), C, config.bias, repeated=True)
        else:
            yield from _linear(ours + "feed_forward.gate_up", gate_up, (F, F), C, config.bias)
        yield from _linear(ours + "feed_forward.down", (theirs + "mlp.down_proj",), (C,), F, config.bias)
    yield _norm(config, "final_norm", "model.norm")
    if not config.tie_embeddings:
        yield TensorMap("head.weight", ("lm_head.weight",), (V, C))


def _mixture(config: GPTConfig, ours: str, theirs: str) -> Iterator[TensorMap]:
    """Router and experts; their w1 is the gate, w3 up, w2 down."""
    E, C, F = config.moe.experts, config.n_embd, config.expert_size
    yield TensorMap(ours + "router.linear.weight", (theirs + "gate.weight",), (E, C))
    names = tuple(f"{theirs}experts.{expert}.{part}.weight" for expert in range(E) for part in ("w1", "w3"))
    yield TensorMap(ours + "experts.up", names, (2 * E * F, C), rows=(F,) * (2 * E), stack=E)
    names = tuple(f"{theirs}experts.{expert}.w2.weight" for expert in range(E))
    yield TensorMap(ours + "experts.down", names, (E * C, F), rows=(C,) * E, stack=E)


def _linear(
    ours: str, theirs: tuple[str, ...], rows: tuple[int, ...], columns: int, bias: bool, repeated: bool = False
) -> Iterator[TensorMap]:
    split = rows if len(rows) > 1 else ()
    weights = tuple(name + ".weight" for name in theirs)
    yield TensorMap(ours + ".weight", weights, (sum(rows), columns), rows=split, repeated=repeated)
    if bias:
        biases = tuple(name + ".bias" for name in theirs)
        yield TensorMap(ours + ".bias", biases, (sum(rows),), rows=split, repeated=repeated, optional=True)


def _norm(config: GPTConfig, ours: str, theirs: str) -> TensorMap:
    gain = ours + ".weight" if config.norm_affine else None
    return TensorMap(gain, (theirs + ".weight",), (config.n_embd,), fill=1.0)


LLAMA_FAMILIES = tuple(
    Family(
        relative.model_type,
        relative.architecture,
        partial(obstacles, relative=relative),
        partial(to_config, relative=relative),
        partial(from_config, relative=relative),
        tensors,
        derived=(".rotary_emb.inv_freq",),
        prefix="model.",
    )
    for relative in RELATIVES
)
"""In the order in which a network is matched: the plainest first."""
