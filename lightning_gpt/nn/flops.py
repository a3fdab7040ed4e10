"""Parameters, floating-point operations and bytes of a network, counted from its configuration alone.

Legend: L layers, C width, H query heads, K key/value heads, D head width, F feed-forward width, V padded vocabulary,
T context. A multiply-add is two operations. Only matrix products count (as in PaLM's model FLOPs utilisation,
Chowdhery et al., 2022, appendix B, and in nanoGPT): norms, softmax, activations and look-ups do not.
"""

import torch

from lightning_gpt.nn.config import GATED, GPTConfig
from lightning_gpt.nn.quantized_cache import CacheCode, CacheKind


def attention_matrix_parameters(config: GPTConfig) -> int:
    """Weights of qkv and out in one block, without biases."""
    heads = config.n_head + 2 * config.kv_heads + config.n_head
    return config.n_embd * heads * config.head_size


def feed_forward_matrix_parameters(config: GPTConfig, layer: int, active: bool = False) -> int:
    """Weights of the feed-forward of one layer, without biases.

    Args:
        active: of a mixture of experts only what one token meets.
    """
    if not config.is_mixture(layer):
        return (3 if config.feed_forward in GATED else 2) * config.n_embd * config.hidden_size
    one, moe = (3 if config.expert_kind in GATED else 2) * config.n_embd, config.moe
    experts = (moe.top_k if active else moe.experts) + moe.shared
    return one * config.expert_size * experts + config.n_embd * moe.experts


def matrix_parameters(config: GPTConfig, active: bool = False) -> int:
    """Weights of all blocks, without biases and norms."""
    layers = range(config.n_layer)
    attention = config.n_layer * attention_matrix_parameters(config)
    return attention + sum(feed_forward_matrix_parameters(config, layer, active) for layer in layers)


def bias_parameters(config: GPTConfig, layer: int) -> int:
    """Biases of one layer."""
    count = (config.n_head + 2 * config.kv_heads) * config.head_size if config.has_qkv_bias else 0
    if not config.bias:
        return count
    count += config.n_embd
    mixture = config.is_mixture(layer)
    hidden = config.moe.shared * config.expert_size if mixture else config.hidden_size
    gated = (config.expert_kind if mixture else config.feed_forward) in GATED
    return count + ((2 if gated else 1) * hidden + config.n_embd if hidden else 0)


def norm_parameters(config: GPTConfig) -> int:
    """Gain and shift of one norm."""
    if not config.norm_affine:
        return 0
    return config.n_embd * (2 if config.norm == "layernorm" and config.bias else 1)


def body_parameters(config: GPTConfig, active: bool = False) -> int:
    """Parameters without embeddings: the blocks and the final norm (Kaplan et al., 2020, their N).

    Args:
        active: of a mixture of experts only what one token meets.
    """
    L = config.n_layer
    vectors = norm_parameters(config) * (4 if config.norm_place == "sandwich" else 2)
    vectors += 2 * config.head_size * config.qk_norm_affine
    vectors += config.n_head * config.attention_sinks + 2 * config.input_skip
    biases = sum(bias_parameters(config, layer) for layer in range(L))
    last_norm = 0 if config.norm_place == "post" else norm_parameters(config)
    return matrix_parameters(config, active) + biases + L * vectors + (L - 1) * config.value_skip + last_norm


def parameters(config: GPTConfig, active: bool = False) -> int:
    """All parameters; a tied head counts once.

    Args:
        active: of a mixture of experts only what one token meets.
    """
    embeddings = config.padded_vocab_size * config.n_embd * (1 if config.tie_embeddings else 2)
    if config.position == "learned":
        embeddings += config.block_size * config.n_embd
    return body_parameters(config, active) + embeddings


def average_keys(window: int | None, context: int, causal: bool) -> float:
    """Keys that a token of a sequence of `context` tokens meets; see forward_flops_per_token."""
    reach = min(window or context, context)
    return reach - reach * (reach - 1) / (2 * context) if causal else reach


def forward_flops_per_token(config: GPTConfig, context: int, causal: bool = False) -> float:
    """Operations of one forward pass per token of a sequence of `context` tokens.

    Args:
        config: the network.
        context: T.
        causal: False counts the full T x T attention matrix (T x window), the convention of published MFU; True
            counts only the keys that a token sees on average, (T + 1) / 2 without a window, which is what a causal
            kernel computes.
    """
    matrices = matrix_parameters(config, active=True)
    head = config.n_embd * config.padded_vocab_size
    keys = sum(average_keys(window, context, causal) for window in config.windows)
    attention = 2 * config.n_head * config.head_size * keys  # scores and values
    return 2.0 * (matrices + head + attention)


def training_flops_per_token(config: GPTConfig, context: int, causal: bool = False) -> float:
    """Forward plus backward, which has two products for each of the forward's. Recomputation is not counted."""
    return 3 * forward_flops_per_token(config, context, causal)


def weight_bytes(config: GPTConfig, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of all parameters."""
    return parameters(config) * dtype.itemsize


def kv_cache_bytes_per_token(config: GPTConfig, dtype: torch.dtype | CacheKind = torch.float32) -> int:
    """Bytes of cached keys and values for each token of one row, before any window is full; with the scales of int8
    and int4."""
    size = config.head_size
    head = size * dtype.itemsize if isinstance(dtype, torch.dtype) else CacheCode(dtype, size).nbytes
    return 2 * config.n_layer * config.kv_heads * head


def kv_cache_bytes(config: GPTConfig, tokens: int, dtype: torch.dtype | CacheKind = torch.float32) -> int:
    """Bytes of cached keys and values of one row of `tokens` tokens in slots: layers with a window stop growing at it
    (in blocks every layer has all, rounded up to whole blocks)."""
    slots = sum(min(window or tokens, tokens) for window in config.windows)
    return slots * kv_cache_bytes_per_token(config, dtype) // config.n_layer
