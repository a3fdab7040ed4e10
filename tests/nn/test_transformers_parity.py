"""Logits, cached logits, loss and gradients beside transformers (the mapping itself is tested in tests/hub)."""

import pytest
import torch

from lightning_gpt.hub import load_model
from lightning_gpt.inference import SamplingConfig, generate
from lightning_gpt.nn import KVCache

transformers = pytest.importorskip("transformers")


def gpt2(**fields):
    shape = {"vocab_size": 83, "n_positions": 32, "n_layer": 3, "n_head": 4, "n_embd": 32}
    config = transformers.GPT2Config(**(shape | fields), bos_token_id=None, eos_token_id=None)
    config.embd_pdrop = config.attn_pdrop = config.resid_pdrop = 0.0
    return transformers.GPT2LMHeadModel(config)


def llama(**fields):
    shape = {
        "vocab_size": 83,
        "max_position_embeddings": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_size": 32,
        "intermediate_size": 56,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(shape | fields)))


def relative(kind, **fields):
    """Mistral, Qwen2, Qwen3 or Mixtral."""
    shape = {
        "vocab_size": 83,
        "max_position_embeddings": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 56,
        "head_dim": 8,
    }
    if kind == "Qwen2":
        del shape["head_dim"]
    config = getattr(transformers, f"{kind}Config")(**(shape | fields))
    return getattr(transformers, f"{kind}ForCausalLM")(config)


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
PEERS = {
    "gpt2": gpt2,
    "gpt2-untied": lambda: gpt2(tie_word_embeddings=False, n_inner=40, activation_function="gelu"),
    "llama": llama,
    "llama-gqa-tied": lambda: llama(num_key_value_heads=2, tie_word_embeddings=True),
    "llama-mqa-bias": lambda: llama(num_key_value_heads=1, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-3),
    "llama-attention-bias": lambda: llama(attention_bias=True, head_dim=16),
    "gpt2-unscaled": lambda: gpt2(scale_attn_weights=False),
    "llama-linear": lambda: llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
    "llama-yarn": lambda: llama(rope_parameters=YARN),
    "llama3": lambda: llama(rope_parameters=LLAMA3, num_key_value_heads=2),
    "mistral": lambda: relative("Mistral", sliding_window=None),
    "mistral-window": lambda: relative("Mistral", sliding_window=6),
    "qwen2": lambda: relative("Qwen2"),
    "qwen2-window": lambda: relative("Qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": lambda: relative("Qwen3", tie_word_embeddings=True),
    "qwen3-wide": lambda: relative("Qwen3", head_dim=16),
    "mixtral": lambda: relative("Mixtral", num_local_experts=4),
    "mixtral-top-1": lambda: relative("Mixtral", num_local_experts=3, num_experts_per_tok=1),
    "llama-theta": lambda: llama(rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
}


@pytest.fixture(params=PEERS)
def pair(request, tmp_path):
    torch.manual_seed(0)
    peer = PEERS[request.param]().eval()
    with torch.no_grad():
        for parameter in peer.parameters():  # biases and gains start trivial: make every tensor count
            parameter.add_(torch.randn_like(parameter) * 0.1)
    peer.save_pretrained(tmp_path)
    net, tokenizer = load_model(tmp_path)
    assert tokenizer is None
    return net, peer


IDS = torch.randint(83, (2, 32), generator=torch.Generator().manual_seed(0))


def test_logits(pair):
    net, peer = pair
    with torch.no_grad():
        assert (net(IDS) - peer(IDS).logits).abs().max() < 1e-4


def test_cached_logits(pair):
    net, peer = pair
    cache = KVCache(net.config, 2)
    with torch.no_grad():
        expected = peer(IDS).logits
        steps = [net(part, cache=cache) for part in IDS.split([9] + [1] * 23, dim=1)]
    assert (torch.cat(steps, dim=1) - expected).abs().max() < 1e-4


def test_greedy_tokens(pair):
    net, peer = pair
    prompt = IDS[:1, :7]
    peer.generation_config.eos_token_id = None
    expected = peer.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)
    assert generate(net, prompt.tolist(), 24, SamplingConfig(temperature=0)) == [expected[0, 7:].tolist()]


def test_loss_and_gradients(pair):
    net, peer = pair
    total, count = net.loss(IDS[:, :-1], IDS[:, 1:])
    (total / count).backward()
    result = peer(IDS, labels=IDS)
    result.loss.backward()
    assert (total / count).item() == pytest.approx(result.loss.item(), rel=1e-5)
    ours, theirs = (
        sum(p.grad.double().square().sum() for p in model.parameters() if p.grad is not None).sqrt().item()
        for model in (net, peer)
    )
    attention_bias = getattr(peer.config, "attention_bias", None)
    if attention_bias == getattr(peer.config, "mlp_bias", attention_bias):
        assert ours == pytest.approx(theirs, rel=1e-4)  # else our zero feed-forward biases have gradients too
