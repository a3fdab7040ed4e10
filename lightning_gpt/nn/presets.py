"""Named configurations of published networks and of shapes for tests."""

from lightning_gpt.nn.config import GPTConfig


def _gpt2(n_layer: int, n_head: int, n_embd: int) -> GPTConfig:
    """Radford et al., 2019, table 2 (parameter counts there are wrong; these are the released weights')."""
    return GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)


def _llama(**fields) -> GPTConfig:
    """Touvron et al., 2023: rotary positions, RMSNorm, SwiGLU, no biases."""
    shape = {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "bias": False}
    return GPTConfig(**(shape | fields))


PRESETS: dict[str, GPTConfig] = {
    "gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    # GPT-2's size and vocabulary in LLaMA's shape
    "llama-125m": _llama(n_layer=12, n_head=12, n_embd=768, norm_eps=1e-6),
    # Allal et al., 2025 (HuggingFaceTB/SmolLM2-135M)
    "smollm2-135m": _llama(
        vocab_size=49152,
        block_size=8192,
        n_layer=30,
        n_head=9,
        n_kv_head=3,
        n_embd=576,
        ffn_hidden=1536,
        rope_theta=100000.0,
    ),
    "tiny-gpt2": GPTConfig(vocab_size=97, block_size=32, n_layer=2, n_head=4, n_embd=32),
    "tiny-llama": _llama(vocab_size=97, block_size=32, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, ffn_hidden=48),
}
