"""GPT-2 (Radford et al., 2019) as transformers' GPT2LMHeadModel stores it."""

from collections.abc import Iterator
from typing import Any

from lightning_gpt.hub.family import Family, TensorMap, beyond, outside
from lightning_gpt.nn import GPTConfig

TO_ACTIVATION = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "relu2": "relu2"}
FROM_ACTIVATION = {their: our for our, their in TO_ACTIVATION.items()} | {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def obstacles(config: GPTConfig) -> list[str]:
    """Fields that GPT2LMHeadModel has no counterpart for (absent biases and gains have: zeros and ones)."""
    found = outside(
        config,
        position=("learned",),
        norm=("layernorm",),
        feed_forward=TO_ACTIVATION,
        attention_scale=(None, 1.0),
    )
    if config.kv_heads != config.n_head:
        found.append(f"n_kv_head={config.n_kv_head}")
    if config.head_size * config.n_head != config.n_embd:
        found.append(f"head_dim={config.head_dim}")
    if config.has_qkv_bias != config.bias:
        found.append(f"qkv_bias={config.qkv_bias}")
    if any(config.windows):
        found.append(f"window={config.window}")
    known = ("n_kv_head", "head_dim", "qkv_bias", "window", "window_pattern", "rope_theta", "attention_scale")
    return found + beyond(config, known)


def to_config(config: GPTConfig) -> dict[str, Any]:
    """config.json of an expressible network."""
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": config.hidden_size,
        "activation_function": TO_ACTIVATION[config.feed_forward],
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_attn_weights": config.attention_scale is None,
    }


def from_config(theirs: dict[str, Any]) -> GPTConfig:
    """The inverse, of any GPT-2 config.json (defaults as in transformers' GPT2Config).

    Raises:
        ValueError: a setting that we have no counterpart for.
    """
    activation = theirs.get("activation_function", "gelu_new")
    if activation not in FROM_ACTIVATION:
        raise ValueError(f"activation_function={activation!r} is not supported: {', '.join(FROM_ACTIVATION)} are")
    for name, plain in (("scale_attn_by_inverse_layer_idx", False), ("add_cross_attention", False)):
        if theirs.get(name, plain) != plain:
            raise ValueError(f"{name}={theirs[name]} has no counterpart here")
    return GPTConfig(
        vocab_size=theirs.get("vocab_size", 50257),
        block_size=theirs.get("n_positions", theirs.get("n_ctx", 1024)),
        n_layer=theirs.get("n_layer", 12),
        n_head=theirs.get("n_head", 12),
        n_embd=theirs.get("n_embd", 768),
        ffn_hidden=theirs.get("n_inner"),
        feed_forward=FROM_ACTIVATION[activation],
        attention_scale=None if theirs.get("scale_attn_weights", True) else 1.0,
        norm_eps=theirs.get("layer_norm_epsilon", 1e-5),
        init_std=theirs.get("initializer_range", 0.02),
        tie_embeddings=theirs.get("tie_word_embeddings", True),
    )


def tensors(config: GPTConfig) -> Iterator[TensorMap]:
    """Every tensor. Their Conv1D layers are linear layers with (in, out) matrices."""
    C, F = config.n_embd, config.hidden_size
    yield TensorMap("token_embedding.weight", ("transformer.wte.weight",), (config.vocab_size, C))
    yield TensorMap("position_embedding.weight", ("transformer.wpe.weight",), (config.block_size, C))
    for layer in range(config.n_layer):
        ours, theirs = f"blocks.{layer}.", f"transformer.h.{layer}."
        yield from _norm(config, ours + "attention_norm", theirs + "ln_1")
        yield from _linear(config, ours + "attention.qkv", theirs + "attn.c_attn", 3 * C, C)
        yield from _linear(config, ours + "attention.out", theirs + "attn.c_proj", C, C)
        yield from _norm(config, ours + "feed_forward_norm", theirs + "ln_2")
        yield from _linear(config, ours + "feed_forward.up", theirs + "mlp.c_fc", F, C)
        yield from _linear(config, ours + "feed_forward.down", theirs + "mlp.c_proj", C, F)
    yield from _norm(config, "final_norm", "transformer.ln_f")
    if not config.tie_embeddings:
        yield TensorMap("head.weight", ("lm_head.weight",), (config.vocab_size, C))


def _linear(config: GPTConfig, ours: str, theirs: str, rows: int, columns: int) -> Iterator[TensorMap]:
    yield TensorMap(ours + ".weight", (theirs + ".weight",), (rows, columns), transposed=True)
    yield TensorMap(ours + ".bias" if config.bias else None, (theirs + ".bias",), (rows,))


def _norm(config: GPTConfig, ours: str, theirs: str) -> Iterator[TensorMap]:
    shape = (config.n_embd,)
    gain, shift = config.norm_affine, config.norm_affine and config.bias
    yield TensorMap(ours + ".weight" if gain else None, (theirs + ".weight",), shape, fill=1.0)
    yield TensorMap(ours + ".bias" if shift else None, (theirs + ".bias",), shape)


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    obstacles,
    to_config,
    from_config,
    tensors,
    derived=(".attn.bias", ".attn.masked_bias"),
    prefix="transformer.",
)
