"""FlexAttention's reference on CPU, and its kernel where there is a GPU, against the readable path."""

import pytest
import torch

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.attention_paths import choose_path, make_sight, plain_attention
from lightning_gpt.nn.flex import flex_causal_attention, flex_runs_on
from lightning_gpt.nn.positions import alibi_slopes

B, H, T, D = 2, 4, 160, 16
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
CASES = {
    "causal": {},
    "window": {"window": 20},
    "alibi": {"slopes": True},
    "documents": {"documents": True},
    "softcap": {"softcap": 3.0},
    "all": {"window": 40, "slopes": True, "documents": True, "softcap": 3.0},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_plain_attention(case, kv_heads, device):
    settings = CASES[case]
    position = torch.arange(T, device=device)
    documents = (position >= 70).long().expand(B, T) if settings.get("documents") else None
    slopes_H = alibi_slopes(H).to(device) if settings.get("slopes") else None
    results = []
    for path in (plain_attention, flex_causal_attention):
        generator = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(B, heads, T, D, generator=generator).to(device).requires_grad_(device == "cuda")
            for heads in (H, kv_heads, kv_heads)
        )
        attend, mask = make_sight(path, position, position, q.dtype, settings.get("window"), slopes_H, documents)
        y = attend(q, k, v, mask, 0.3, 0.0, softcap=settings.get("softcap"))
        results.append([y.detach()])
        if device == "cuda":  # the reference on CPU has no backward
            (y * torch.linspace(-1, 1, y.numel(), device=device).view_as(y)).sum().backward()
            results[-1] += [q.grad, k.grad, v.grad]
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, atol=2e-5 if device == "cpu" else 2e-3, rtol=1e-3)


def test_the_mask_knows_which_blocks_are_empty():
    position = torch.arange(1024)
    _, mask = make_sight(flex_causal_attention, position, position, torch.float32, window=128)
    assert mask.kv_num_blocks[0, 0].add(mask.full_kv_num_blocks[0, 0]).tolist() == [1, *[2] * 7]
    assert make_sight(flex_causal_attention, position, position, torch.float32, window=128)[1] is mask


def test_it_is_chosen_where_it_runs_and_the_others_would_need_a_full_mask():
    cuda, bf16 = torch.device("cuda"), torch.bfloat16
    special = ({"window": 64}, {"biased": True}, {"documents": True}, {"softcap": True})
    for settings in special:
        chosen = choose_path(cuda, bf16, 1024, 1024, whole=True, dropout=False, **settings)
        assert (chosen is flex_causal_attention) == flex_runs_on("cuda")
        for changes in ({"dropout": True}, {"whole": False}, {"sinks": True}):
            arguments = {"whole": True, "dropout": False} | settings | changes
            assert choose_path(cuda, bf16, 1024, 1024, **arguments) is not flex_causal_attention
        assert choose_path(cuda, bf16, 64, 64, True, False, **settings) is not flex_causal_attention
        on_cpu = choose_path(torch.device("cpu"), bf16, 1024, 1024, True, False, **settings)
        assert on_cpu is not flex_causal_attention


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("fields", [{"window": 30}, {"position": "alibi"}, {"attention_softcap": 5.0}])
def test_networks_agree_with_the_cpu(fields):
    torch.manual_seed(0)
    net = GPT(GPTConfig(vocab_size=41, block_size=256, n_layer=2, n_head=4, n_embd=64, **fields))
    ids = torch.randint(41, (2, 256))
    with torch.no_grad():
        torch.testing.assert_close(net.cuda()(ids.cuda()).cpu(), net.cpu()(ids), atol=5e-3, rtol=1e-2)
