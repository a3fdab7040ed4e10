"""Named configurations of published networks and of shapes for tests.

Parameter counts follow the released weights where there are some (tests/nn/test_presets.py compares them).
"""

from lightning_gpt.nn.config import GPTConfig
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.nn.rope_scaling import RopeScaling


def _gpt(n_layer: int, n_head: int, n_embd: int, block_size: int = 1024, head_dim: int | None = None) -> GPTConfig:
    """GPT-2 (Radford et al., 2019, table 2; its counts are wrong) and GPT-3 (Brown et al., 2020, table 2.1, without
    its alternating sparse layers)."""
    return GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size, head_dim=head_dim)


def _llama(**fields) -> GPTConfig:
    """Touvron et al., 2023: rotary positions, RMSNorm, SwiGLU, no biases."""
    parts = {"position": "rotary", "norm": "rmsnorm", "norm_eps": 1e-6, "feed_forward": "swiglu", "bias": False}
    return GPTConfig(**(parts | fields))


def _llama1(n_layer: int, n_head: int, n_embd: int, ffn_hidden: int, block_size: int = 2048, **fields) -> GPTConfig:
    """LLaMA (Touvron et al., 2023a) and LLaMA 2 (2023b, 4,096 tokens)."""
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "ffn_hidden": ffn_hidden}
    return _llama(vocab_size=32000, block_size=block_size, tie_embeddings=False, **shape, **fields)


def _llama3(n_layer: int, n_head: int, n_embd: int, ffn_hidden: int, **fields) -> GPTConfig:
    """LLaMA 3 (Dubey et al., 2024): 8 key/value heads, 128,256 tokens, base 500,000."""
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "ffn_hidden": ffn_hidden}
    common = {"vocab_size": 128256, "block_size": 8192, "n_kv_head": 8, "rope_theta": 5e5, "tie_embeddings": False}
    return _llama(**(common | {"norm_eps": 1e-5} | shape | fields))


def _qwen25(n_layer: int, n_head: int, n_kv_head: int, n_embd: int, ffn_hidden: int, **fields) -> GPTConfig:
    """Qwen2.5 (Yang et al., 2024): biases of queries, keys and values alone."""
    shape = {"n_layer": n_layer, "n_head": n_head, "n_kv_head": n_kv_head, "n_embd": n_embd, "ffn_hidden": ffn_hidden}
    common = {"vocab_size": 151936, "block_size": 32768, "rope_theta": 1e6, "qkv_bias": True}
    return _llama(**(common | shape | fields))


def _qwen3(n_layer: int, n_head: int, n_embd: int, ffn_hidden: int, **fields) -> GPTConfig:
    """Qwen3 (Yang et al., 2025): normalised queries and keys, heads of 128, 8 key/value heads."""
    shape = {"n_layer": n_layer, "n_head": n_head, "n_kv_head": 8, "n_embd": n_embd, "ffn_hidden": ffn_hidden}
    common = {"vocab_size": 151936, "block_size": 40960, "rope_theta": 1e6, "head_dim": 128}
    return _llama(**(common | {"qk_norm": True, "qk_norm_affine": True} | shape | fields))


def _smollm2(n_layer: int, n_head: int, n_kv_head: int, n_embd: int, ffn_hidden: int, **fields) -> GPTConfig:
    """SmolLM2 (Allal et al., 2025)."""
    shape = {"n_layer": n_layer, "n_head": n_head, "n_kv_head": n_kv_head, "n_embd": n_embd, "ffn_hidden": ffn_hidden}
    return _llama(**({"vocab_size": 49152, "block_size": 8192, "rope_theta": 1e5, "norm_eps": 1e-5} | shape | fields))


def _glam(n_layer: int, n_head: int, n_embd: int, ffn_hidden: int, vocab_size: int = 256000) -> GPTConfig:
    """GLaM with 64 experts (Du et al., 2022, table 4): experts in every second layer, top-2, GEGLU elsewhere."""
    return GPTConfig(
        vocab_size=vocab_size,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        head_dim=128 if n_embd == 8192 else None,
        ffn_hidden=ffn_hidden,
        position="rotary",  # theirs is a learned relative bias, which has next to no parameters
        norm="rmsnorm",
        feed_forward="geglu",
        bias=False,
        moe=MoEConfig(experts=64, top_k=2, every=2, feed_forward="gelu", capacity_factor=2.0),
    )


_MISTRAL = {"vocab_size": 32000, "n_layer": 32, "n_head": 32, "n_kv_head": 8, "n_embd": 4096, "ffn_hidden": 14336}
_LLAMA31 = RopeScaling("llama3", 8.0, 8192)

PRESETS: dict[str, GPTConfig] = {
    "gpt2": _gpt(12, 12, 768),
    "gpt2-medium": _gpt(24, 16, 1024),
    "gpt2-large": _gpt(36, 20, 1280),
    "gpt2-xl": _gpt(48, 25, 1600),
    "gpt3-125m": _gpt(12, 12, 768, 2048),
    "gpt3-350m": _gpt(24, 16, 1024, 2048),
    "gpt3-760m": _gpt(24, 16, 1536, 2048),
    "gpt3-1.3b": _gpt(24, 16, 2048, 2048),  # the table says 24 heads of 128, which is not 2,048
    "gpt3-2.7b": _gpt(32, 32, 2560, 2048),
    "gpt3-6.7b": _gpt(32, 32, 4096, 2048),
    "gpt3-13b": _gpt(40, 40, 5120, 2048),  # the table says 5,140, which 40 does not divide
    "gpt3-175b": _gpt(96, 96, 12288, 2048),
    # GPT-2's size and vocabulary in LLaMA's shape
    "llama-125m": _llama(n_layer=12, n_head=12, n_embd=768),
    "llama-7b": _llama1(32, 32, 4096, 11008),
    "llama-13b": _llama1(40, 40, 5120, 13824),
    "llama-33b": _llama1(60, 52, 6656, 17920),
    "llama-65b": _llama1(80, 64, 8192, 22016),
    "llama2-7b": _llama1(32, 32, 4096, 11008, 4096, norm_eps=1e-5),
    "llama2-13b": _llama1(40, 40, 5120, 13824, 4096, norm_eps=1e-5),
    "llama2-70b": _llama1(80, 64, 8192, 28672, 4096, n_kv_head=8, norm_eps=1e-5),
    "llama3-8b": _llama3(32, 32, 4096, 14336),
    "llama3-70b": _llama3(80, 64, 8192, 28672),
    "llama3.1-405b": _llama3(126, 128, 16384, 53248, block_size=131072, rope_scaling=_LLAMA31),
    "llama3.2-1b": _llama3(
        16,
        32,
        2048,
        8192,
        block_size=131072,
        tie_embeddings=True,
        rope_scaling=RopeScaling("llama3", 32.0, 8192),
    ),
    "mistral-7b": _llama(**_MISTRAL, block_size=32768, norm_eps=1e-5, tie_embeddings=False, window=4096),
    "mixtral-8x7b": _llama(
        **_MISTRAL, block_size=32768, norm_eps=1e-5, tie_embeddings=False, rope_theta=1e6, moe=MoEConfig()
    ),
    "qwen2.5-0.5b": _qwen25(24, 14, 2, 896, 4864),
    "qwen2.5-1.5b": _qwen25(28, 12, 2, 1536, 8960),
    "qwen2.5-7b": _qwen25(28, 28, 4, 3584, 18944, vocab_size=152064, tie_embeddings=False),
    "qwen3-0.6b": _qwen3(28, 16, 1024, 3072),
    "qwen3-1.7b": _qwen3(28, 16, 2048, 6144),
    "qwen3-8b": _qwen3(36, 32, 4096, 12288, tie_embeddings=False),
    "smollm2-135m": _smollm2(30, 9, 3, 576, 1536),
    "smollm2-360m": _smollm2(32, 15, 5, 960, 2560),
    "smollm2-1.7b": _smollm2(24, 32, 32, 2048, 8192, rope_theta=130000.0),
    "glam-1.7b-64e": _glam(24, 16, 2048, 8192, 32000),  # the published count has no room for 256,000 pieces
    "glam-64b-64e": _glam(64, 128, 8192, 32768),
    # One stack of the encoder-decoder (Fedus et al., 2021, table 9)
    "switch-base": GPTConfig(
        vocab_size=32128,
        block_size=512,
        ffn_hidden=2048,
        position="rotary",
        norm="rmsnorm",
        feed_forward="geglu",
        bias=False,
        moe=MoEConfig(experts=128, top_k=1, renormalize=False, every=2, capacity_factor=1.25),
    ),
    "tiny-gpt2": GPTConfig(vocab_size=97, block_size=32, n_layer=2, n_head=4, n_embd=32),
    "tiny-llama": _llama(
        vocab_size=97, block_size=32, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, ffn_hidden=48, norm_eps=1e-5
    ),
    "tiny-mixtral": _llama(
        vocab_size=97,
        block_size=32,
        n_layer=2,
        n_head=4,
        n_kv_head=2,
        n_embd=32,
        ffn_hidden=48,
        moe=MoEConfig(experts=4),
    ),
}
