"""LLaMA (Touvron et al., 2023) as transformers' LlamaForCausalLM stores it, and Qwen3, which is LLaMA with normalised
queries and keys."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from lightning_gpt.hub.family import Family, TensorMap
from lightning_gpt.nn import GPTConfig

TO_ACTIVATION = {"swiglu": "silu", "geglu": "gelu", "relu2": "relu"}
"""relu2 is not gated, but relu(x)^2 = relu(x) x: with the same matrix as gate and as up it is, exactly."""
FROM_ACTIVATION = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}


def obstacles(config: GPTConfig, qk_norm: bool) -> list[str]:
    """Fields that the architecture has no counterpart for."""
    found = []
    for name, allowed in (("position", ("rotary",)), ("norm", ("rmsnorm",)), ("feed_forward", TO_ACTIVATION)):
        if getattr(config, name) not in allowed:
            found.append(f"{name}={getattr(config, name)}")
    if config.qk_norm != qk_norm:
        found.append(f"qk_norm={config.qk_norm}")
    if qk_norm and config.bias:
        found.append("bias=True")  # Qwen3 has none in its feed-forward
    if not qk_norm and config.n_embd % config.n_head:
        found.append(f"head_dim={config.head_dim}")  # transformers refuses it although the weights would fit
    if config.logit_softcap is not None:
        found.append(f"logit_softcap={config.logit_softcap:g}")
    return found


def to_config(config: GPTConfig) -> dict[str, Any]:
    """config.json of an expressible network. The rotary base is written as transformers 4 and as 5 read it."""
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.hidden_size,
        "hidden_act": TO_ACTIVATION[config.feed_forward],
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": config.dropout,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
    }


def from_config(theirs: dict[str, Any], qk_norm: bool) -> GPTConfig:
    """The inverse, of any config.json of the architecture (defaults as in transformers).

    Raises:
        ValueError: a setting that we have no counterpart for.
    """
    activation = theirs.get("hidden_act", "silu")
    if activation not in FROM_ACTIVATION:
        raise ValueError(f"hidden_act={activation!r} is not supported: {', '.join(FROM_ACTIVATION)} are")
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_type={kind!r} is not supported: only 'default' is")
    if theirs.get("use_sliding_window"):
        raise ValueError("use_sliding_window=True has no counterpart here")
    return GPTConfig(
        vocab_size=theirs.get("vocab_size", 151936 if qk_norm else 32000),
        block_size=theirs.get("max_position_embeddings", 32768 if qk_norm else 2048),
        n_layer=theirs.get("num_hidden_layers", 32),
        n_head=theirs.get("num_attention_heads", 32),
        n_kv_head=theirs.get("num_key_value_heads"),
        head_dim=theirs.get("head_dim"),
        n_embd=theirs.get("hidden_size", 4096),
        ffn_hidden=theirs.get("intermediate_size", 22016 if qk_norm else 11008),
        position="rotary",
        rope_theta=float(rope.get("rope_theta", theirs.get("rope_theta", 10000.0))),
        norm="rmsnorm",
        norm_eps=theirs.get("rms_norm_eps", 1e-6),
        feed_forward=FROM_ACTIVATION[activation],
        bias=bool(theirs.get("attention_bias", False) or theirs.get("mlp_bias", False)),
        init_std=theirs.get("initializer_range", 0.02),
        tie_embeddings=theirs.get("tie_word_embeddings", False),
        qk_norm=qk_norm,
    )


def tensors(config: GPTConfig) -> Iterator[TensorMap]:
    """Every tensor. Their q, k, v are our qkv; their gate and up are our gate_up."""
    C, F, V = config.n_embd, config.hidden_size, config.vocab_size
    q, kv = config.n_head * config.head_size, config.kv_heads * config.head_size
    yield TensorMap("token_embedding.weight", ("model.embed_tokens.weight",), (V, C))
    for layer in range(config.n_layer):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        yield _norm(config, ours + "attention_norm", theirs + "input_layernorm")
        attention = tuple(f"{theirs}self_attn.{part}_proj" for part in "qkv")
        yield from _linear(config, ours + "attention.qkv", attention, (q, kv, kv), C)
        yield from _linear(config, ours + "attention.out", (theirs + "self_attn.o_proj",), (C,), q)
        if config.qk_norm:
            names = (theirs + "self_attn.q_norm.weight", theirs + "self_attn.k_norm.weight")
            yield TensorMap(None, names, (config.head_size,), fill=1.0)
        yield _norm(config, ours + "feed_forward_norm", theirs + "post_attention_layernorm")
        gate_up = (theirs + "mlp.gate_proj", theirs + "mlp.up_proj")
        if config.feed_forward == "relu2":
            yield from _linear(config, ours + "feed_forward.up", gate_up, (F,), C, repeated=True)
        else:
            yield from _linear(config, ours + "feed_forward.gate_up", gate_up, (F, F), C)
        yield from _linear(config, ours + "feed_forward.down", (theirs + "mlp.down_proj",), (C,), F)
    yield _norm(config, "final_norm", "model.norm")
    if not config.tie_embeddings:
        yield TensorMap("head.weight", ("lm_head.weight",), (V, C))


def _linear(
    config: GPTConfig, ours: str, theirs: tuple[str, ...], rows: tuple[int, ...], columns: int, repeated: bool = False
) -> Iterator[TensorMap]:
    split = rows if len(rows) > 1 else ()
    weights = tuple(name + ".weight" for name in theirs)
    yield TensorMap(ours + ".weight", weights, (sum(rows), columns), rows=split, repeated=repeated)
    if config.bias:
        biases = tuple(name + ".bias" for name in theirs)
        yield TensorMap(ours + ".bias", biases, (sum(rows),), rows=split, repeated=repeated, optional=True)


def _norm(config: GPTConfig, ours: str, theirs: str) -> TensorMap:
    gain = ours + ".weight" if config.norm_affine else None
    return TensorMap(gain, (theirs + ".weight",), (config.n_embd,), fill=1.0)


def _family(model_type: str, architecture: str, qk_norm: bool) -> Family:
    return Family(
        model_type,
        architecture,
        partial(obstacles, qk_norm=qk_norm),
        to_config,
        partial(from_config, qk_norm=qk_norm),
        tensors,
        derived=(".rotary_emb.inv_freq",),
        prefix="model.",
    )


LLAMA = _family("llama", "LlamaForCausalLM", qk_norm=False)
QWEN3 = _family("qwen3", "Qwen3ForCausalLM", qk_norm=True)
