import pytest
import torch

from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn import moe as moe_module
from lightning_gpt.nn.dispatch import Collect, Spread, dispatch
from lightning_gpt.nn.moe import MixtureOfExperts
from lightning_gpt.nn.moe_config import MoEConfig

# Three tokens, two experts each, of four; expert 3 has no token.
EXPERT_M = torch.tensor([2, 0, 0, 1, 2, 1])
KEPT_M = torch.tensor([True, True, True, False, False, True])


def test_rows_lie_by_expert():
    plan = dispatch(EXPERT_M, None, experts=4, top_k=2, multiple=1)
    assert plan.rows_E.tolist() == [2, 2, 2, 0]
    assert plan.token_S.tolist() == [0, 1, 1, 2, 0, 2]
    assert plan.pair_S.tolist() == [1, 2, 3, 5, 0, 4]
    assert plan.slot_M.tolist() == [4, 0, 1, 2, 5, 3]


def test_empty_rows_fill_each_expert_to_a_multiple():
    plan = dispatch(EXPERT_M, None, experts=4, top_k=2, multiple=4)
    assert plan.rows_E.tolist() == [4, 4, 4, 0]
    assert plan.pair_S.tolist() == [1, 2, 6, 6, 3, 5, 6, 6, 0, 4, 6, 6]
    assert plan.slot_M.tolist() == [8, 0, 1, 4, 9, 5]


def test_dropped_pairs_have_no_row():
    plan = dispatch(EXPERT_M, KEPT_M, experts=4, top_k=2, multiple=1)
    assert plan.rows_E.tolist() == [2, 1, 1, 0]
    assert plan.slot_M.tolist() == [3, 0, 1, 4, 4, 2]
    assert plan.drops


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("kept_M", [None, KEPT_M], ids=["all", "some"])
def test_there_and_back_is_the_weighted_sum_with_exact_gradients(kept_M, multiple):
    torch.manual_seed(0)
    plan = dispatch(EXPERT_M, kept_M, experts=4, top_k=2, multiple=multiple)
    x_NC = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight_EC = torch.randn(4, 5, dtype=torch.float64)
    gate_NK = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)

    def through_rows(x, gate):
        rows = Spread.apply(x, plan)
        return Collect.apply(rows * weight_EC.repeat_interleave(plan.rows_E, 0), gate, plan)

    kept_NK = torch.ones(3, 2) if kept_M is None else kept_M.view(3, 2).double()
    expected = ((gate_NK * kept_NK)[..., None] * x_NC[:, None] * weight_EC[EXPERT_M.view(3, 2)]).sum(1)
    torch.testing.assert_close(through_rows(x_NC, gate_NK), expected)
    assert torch.autograd.gradcheck(through_rows, (x_NC, gate_NK))


@pytest.mark.parametrize("capacity_factor", [None, 0.75])
def test_empty_rows_change_neither_outputs_nor_gradients(capacity_factor, monkeypatch):
    moe = MoEConfig(experts=4, top_k=2, capacity_factor=capacity_factor)
    config = GPTConfig(n_embd=16, n_head=1, bias=False, feed_forward="swiglu", ffn_hidden=24, moe=moe)
    results = []
    for multiples in ({}, {torch.float32: 8}):
        monkeypatch.setattr(moe_module, "CPU_ROW_MULTIPLE", multiples)
        torch.manual_seed(0)
        layer = MixtureOfExperts(config)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        x = torch.randn(2, 13, 16, requires_grad=True)
        y = layer(x)
        (y.square().sum() + layer.report.loss).backward()
        results.append((y, x.grad, *(parameter.grad for parameter in layer.parameters())))
        assert (layer.report.dropped > 0) == (capacity_factor is not None)
    for one, two in zip(*results):
        torch.testing.assert_close(one, two)


def test_products_in_bfloat16_meet_few_numbers_of_rows():
    """Each number that is new costs a compilation."""
    torch.manual_seed(0)
    moe = MoEConfig(experts=4, top_k=2)
    layer = MixtureOfExperts(GPTConfig(n_embd=16, n_head=1, bias=False, ffn_hidden=24, moe=moe))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    met = set()
    grouped = layer.experts.forward
    layer.experts.forward = lambda x, rows: met.update(rows.tolist()) or grouped(x, rows)
    loads = set()
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(12):
            layer(torch.randn(1, 256, 16))
            loads |= set(layer.report.load_E.tolist())
        assert all(rows % 32 == 0 for rows in met)
        assert len(met) < len(loads) / 3
        met.clear()
        layer(torch.randn(1, 1, 16))
    assert sorted(met) == [0, 1]  # one token is not filled up
