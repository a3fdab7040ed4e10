"""Parameters, floating-point operations and bytes of a network, counted from its configuration alone.

Legend: L layers, C width, H query heads, K key/value heads, D head width, F feed-forward width, V padded vocabulary,
T context. A multiply-add is two operations. Only matrix products count (as in PaLM's model FLOPs utilisation,
Chowdhery et al., 2022, appendix B, and in nanoGPT): norms, softmax, activations and look-ups do not.
"""

import torch

from lightning_gpt.nn.config import GATED, GPTConfig


def attention_matrix_parameters(config: GPTConfig) -> int:
    """Weights of qkv and out in one block, without biases."""
    heads = config.n_head + 2 * config.kv_heads + config.n_head
    return config.n_embd * heads * config.head_size


def feed_forward_matrix_parameters(config: GPTConfig) -> int:
    """Weights of the feed-forward in one block, without biases."""
    return (3 if config.feed_forward in GATED else 2) * config.n_embd * config.hidden_size


def norm_parameters(config: GPTConfig) -> int:
    """Gain and shift of one norm."""
    if not config.norm_affine:
        return 0
    return config.n_embd * (2 if config.norm == "layernorm" and config.bias else 1)


def body_parameters(config: GPTConfig) -> int:
    """Parameters without embeddings: the blocks and the final norm (Kaplan et al., 2020, their N)."""
    biases = 0
    if config.bias:
        biases = (config.n_head + 2 * config.kv_heads) * config.head_size + config.n_embd
        biases += (2 if config.feed_forward in GATED else 1) * config.hidden_size + config.n_embd
    block = attention_matrix_parameters(config) + feed_forward_matrix_parameters(config)
    return config.n_layer * (block + biases + 2 * norm_parameters(config)) + norm_parameters(config)


def parameters(config: GPTConfig) -> int:
    """All parameters; a tied head counts once."""
    embeddings = config.padded_vocab_size * config.n_embd * (1 if config.tie_embeddings else 2)
    if config.position == "learned":
        embeddings += config.block_size * config.n_embd
    return body_parameters(config) + embeddings


def forward_flops_per_token(config: GPTConfig, context: int, causal: bool = False) -> float:
    """Operations of one forward pass per token of a sequence of `context` tokens.

    Args:
        config: the network.
        context: T.
        causal: False counts the full T x T attention matrix, the convention of published MFU; True counts only the
            (T + 1) / 2 keys that a token sees on average, which is what a causal kernel computes.
    """
    matrices = config.n_layer * (attention_matrix_parameters(config) + feed_forward_matrix_parameters(config))
    head = config.n_embd * config.padded_vocab_size
    keys = (context + 1) / 2 if causal else context
    attention = 2 * config.n_layer * config.n_head * config.head_size * keys  # scores and values
    return 2.0 * (matrices + head + attention)


def training_flops_per_token(config: GPTConfig, context: int, causal: bool = False) -> float:
    """Forward plus backward, which has two products for each of the forward's. Recomputation is not counted."""
    return 3 * forward_flops_per_token(config, context, causal)


def weight_bytes(config: GPTConfig, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of all parameters."""
    return parameters(config) * dtype.itemsize


def kv_cache_bytes_per_token(config: GPTConfig, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of cached keys and values for each token of one row."""
    return 2 * config.n_layer * config.kv_heads * config.head_size * dtype.itemsize
