import dataclasses
import math

import pytest
import torch

from lightning_gpt.nn import GPT, GPTConfig, KVCache
from lightning_gpt.nn.experts import Experts
from lightning_gpt.nn.moe import MixtureOfExperts
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.nn.router import Router

SHAPE = {"vocab_size": 41, "block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32, "bias": False}
C = SHAPE["n_embd"]


def config(kind="swiglu", **moe):
    return GPTConfig(**SHAPE, feed_forward=kind, ffn_hidden=48, moe=MoEConfig(**({"experts": 4} | moe)))


def router_with(logits_NE, **moe):
    """A router whose logits on the rows of the identity are given."""
    N, E = logits_NE.shape
    router = Router(N, MoEConfig(**({"experts": E} | moe))).eval()
    router.linear.weight.data = logits_NE.T.contiguous()
    return router(torch.eye(N))


def pairs(route):
    return [
        (token, expert, round(gate, 5))
        for token, expert, gate in zip(route.token_M.tolist(), route.expert_M.tolist(), route.gate_M.tolist())
    ]


LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 2.0, 0.5], [0.0, 1.0, 4.0]])


def test_top_2_of_softmax_by_hand():
    p = LOGITS.softmax(-1)
    made = pairs(router_with(LOGITS, top_k=2, renormalize=False))
    expected = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 1), (2, 0), (3, 2), (3, 1)]
    assert made == [(n, e, round(p[n, e].item(), 5)) for n, e in expected]
    made = pairs(router_with(LOGITS, top_k=2))
    for (one, two), logits in zip(zip(made[::2], made[1::2]), LOGITS.sort(descending=True).values):
        gates = logits[:2].softmax(-1)  # renormalised softmax = softmax over the chosen
        assert (one[2], two[2]) == pytest.approx(tuple(gates.tolist()), abs=2e-5)


def test_switch_gate_is_the_probability():
    made = pairs(router_with(LOGITS, top_k=1, renormalize=False))
    p = LOGITS.softmax(-1)
    assert made == [(n, e, round(p[n, e].item(), 5)) for n, e in ((0, 0), (1, 1), (2, 1), (3, 2))]


def test_sigmoid_gates_are_renormalised_and_scaled():
    made = pairs(router_with(LOGITS, top_k=2, routing="sigmoid", scale=2.5))
    s = torch.sigmoid(LOGITS[0])
    assert made[0][:2] == (0, 0)
    assert made[0][2] == pytest.approx(2.5 * (s[0] / (s[0] + s[1])).item(), abs=2e-5)


def test_bias_moves_the_choice_but_not_the_gate():
    router = Router(4, MoEConfig(experts=3, top_k=1, renormalize=False, balance="bias")).eval()
    router.linear.weight.data = LOGITS.T.contiguous()
    router.balance_bias_E[0] = 5.0
    route = router(torch.eye(4))
    assert route.expert_M.tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(route.gate_M, LOGITS.softmax(-1)[:, 0])


def test_bias_follows_the_load():
    router = Router(4, MoEConfig(experts=3, balance="bias", bias_rate=0.5))
    router.follow_load(torch.tensor([9.0, 3.0, 0.0]))
    assert router.balance_bias_E.tolist() == [-0.5, 0.5, 0.5]


def test_capacity_takes_first_choices_first_then_position():
    # 4 tokens, 2 choices, 3 experts: ceil(0.75 * 8 / 3) = 2 a piece. First choices: 0, 1, 1, 2.
    route = router_with(LOGITS, top_k=2, capacity_factor=0.75)
    kept = {(n, e): gate > 0 for n, e, gate in pairs(route)}
    # Expert 1: firsts of tokens 1 and 2 fill it, the seconds of tokens 0 and 3 are dropped.
    assert kept == {
        (0, 0): True,
        (0, 1): False,
        (1, 1): True,
        (1, 2): True,
        (2, 1): True,
        (2, 0): True,
        (3, 2): True,
        (3, 1): False,
    }


def test_expert_choice_gives_every_expert_the_same_load():
    route = router_with(LOGITS, top_k=1, routing="expert_choice", balance="none", capacity_factor=1.5)
    assert torch.bincount(route.expert_M).tolist() == [2, 2, 2]
    p = LOGITS.softmax(-1)
    for expert in range(3):
        best = set(p[:, expert].topk(2).indices.tolist())
        assert {n for n, e, _ in pairs(route) if e == expert} == best


def test_balance_loss_is_one_when_even_and_experts_when_collapsed():
    even = router_with(torch.zeros(4, 4) + 1e-4 * torch.eye(4), top_k=1)
    assert even.balance_loss.item() == pytest.approx(1.0, abs=1e-3)
    collapsed = router_with(torch.tensor([[20.0, 0, 0, 0]] * 4), top_k=1)
    assert collapsed.balance_loss.item() == pytest.approx(4.0, abs=1e-3)


def test_losses_and_entropy_by_hand():
    route = router_with(LOGITS, top_k=2)
    p, load = LOGITS.softmax(-1), torch.tensor([2.0, 4.0, 2.0]) / 8
    assert route.balance_loss.item() == pytest.approx((3 * (load * p.mean(0)).sum()).item())
    assert route.z_loss.item() == pytest.approx(LOGITS.logsumexp(-1).square().mean().item())
    assert route.entropy.item() == pytest.approx((-(p * p.log()).sum(-1).mean()).item())


def test_jitter_only_in_training():
    torch.manual_seed(0)
    router = Router(4, MoEConfig(experts=3, jitter=0.5))
    x = torch.randn(6, 4)
    assert not torch.equal(router.train()(x).gate_M, router(x).gate_M)
    assert torch.equal(router.eval()(x).gate_M, router(x).gate_M)


@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
@pytest.mark.parametrize("rows", [[3, 5, 2, 6], [0, 16, 0, 0], [0, 0, 1, 0]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_product_equals_the_loop(kind, rows, dtype):
    torch.manual_seed(0)
    experts = Experts(config(kind))
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    experts.to(dtype)
    x = torch.randn(sum(rows), C, dtype=dtype)
    results = []
    for function in (experts.forward, experts.loop):
        experts.zero_grad()
        leaf = x.clone().requires_grad_()
        y = function(leaf, torch.tensor(rows))
        y.float().square().sum().backward()
        results.append((y, leaf.grad, experts.up.grad, experts.down.grad))
    tolerance = {} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.05}
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, **tolerance)


def test_identical_experts_with_gates_of_one_are_the_dense_network():
    torch.manual_seed(0)
    dense = GPT(GPTConfig(**SHAPE, feed_forward="swiglu", ffn_hidden=48)).eval()
    from lightning_gpt.hub.upcycle import upcycle

    mixture = upcycle(dense, MoEConfig(experts=4, top_k=2))
    x = torch.randint(41, (2, 20))
    torch.testing.assert_close(mixture(x), dense(x), atol=2e-6, rtol=1e-5)
    noisy = upcycle(dense, MoEConfig(experts=4, top_k=2), noise=0.1)
    assert not torch.equal(noisy.blocks[0].feed_forward.experts.up[0], noisy.blocks[0].feed_forward.experts.up[1])


@pytest.mark.parametrize(
    ("fields", "moe", "message"),
    [
        ({"bias": True}, {}, "bias=True"),
        ({}, {"shared": 1}, "moe.shared=1"),
        ({}, {"expert_hidden": 16}, "moe.expert_hidden=16"),
        ({}, {"feed_forward": "relu"}, "moe.feed_forward=relu"),
        ({"moe": MoEConfig(experts=2)}, {}, "experts already"),
    ],
)
def test_upcycling_that_cannot_be_exact_is_refused(fields, moe, message):
    from lightning_gpt.hub.upcycle import upcycle

    shape = SHAPE | {"feed_forward": "swiglu", "ffn_hidden": 48}
    with pytest.raises(ValueError, match=message):
        upcycle(GPT(GPTConfig(**(shape | fields))), MoEConfig(**({"experts": 4} | moe)))


def test_a_layer_by_hand():
    torch.manual_seed(0)
    layer = MixtureOfExperts(config(top_k=2, shared=1)).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 5, C, dtype=torch.float64)
    y = layer(x)
    p = (x @ layer.router.linear.weight.T).softmax(-1)
    for b in range(2):
        for t in range(5):
            gates, chosen = p[b, t].topk(2)
            expected = layer.shared(x[b, t])
            for gate, e in zip(gates / gates.sum(), chosen):
                gate_up = layer.experts.up[e] @ x[b, t]
                hidden = torch.nn.functional.silu(gate_up[:48]) * gate_up[48:]
                expected = expected + gate * (layer.experts.down[e] @ hidden)
            torch.testing.assert_close(y[b, t], expected)
    assert layer.report.load_E.sum() == 2 * 5 * 2


def test_dropless_is_causal_and_the_others_are_as_documented():
    def earlier_outputs_change(**moe):
        torch.manual_seed(0)
        net = GPT(config(**moe)).double().eval()
        for layer in net.blocks:
            torch.nn.init.normal_(layer.feed_forward.router.linear.weight)
        changed = False
        for seed in range(8):
            x = torch.randint(41, (2, 12), generator=torch.Generator().manual_seed(seed))
            other = x.clone()
            other[:, 8:] = (other[:, 8:] + 1 + seed) % 41
            changed |= not torch.allclose(net(x)[:, :8], net(other)[:, :8])
        return changed

    assert not earlier_outputs_change(top_k=2)
    assert earlier_outputs_change(top_k=1, routing="expert_choice", balance="none")
    assert earlier_outputs_change(top_k=2, capacity_factor=0.75)  # a first choice of a later token comes first


def test_expert_choice_is_refused_for_generation():
    net = GPT(config(routing="expert_choice", balance="none")).eval()
    with pytest.raises(ValueError, match=r"moe\.routing=expert_choice cannot generate"):
        net(torch.zeros(1, 3, dtype=torch.int64), cache=KVCache(net.config, 1))


def test_router_losses_reach_the_router_alone_and_the_bias_is_saved():
    torch.manual_seed(0)
    net = GPT(config(balance="loss"))
    x = torch.randint(41, (2, 13))
    _, _, extra = net.training_loss(x[:, :-1], x[:, 1:])
    expected = sum(0.01 * 1.0 + 0.001 * math.log(4) ** 2 for _ in net.blocks)  # an even router
    assert extra.item() == pytest.approx(expected, rel=0.1)
    extra.backward()
    assert all(block.feed_forward.router.linear.weight.grad.abs().sum() > 0 for block in net.blocks)
    assert all(block.feed_forward.experts.up.grad is None for block in net.blocks[-1:])
    biased = GPT(config(balance="bias"))
    assert "blocks.0.feed_forward.router.balance_bias_E" in biased.state_dict()


REFUSED = [
    ({"experts": 0}, "moe.experts=0"),
    ({"top_k": 9}, "moe.top_k=9"),
    ({"top_k": 0}, "moe.top_k=0"),
    ({"routing": "hash"}, "moe.routing='hash'"),
    ({"balance": "luck"}, "moe.balance='luck'"),
    ({"capacity_factor": 0.0}, "moe.capacity_factor=0.0"),
    ({"jitter": 1.0}, "moe.jitter=1.0"),
    ({"shared": -1}, "moe.shared=-1"),
    ({"scale": 0.0}, "moe.scale=0.0"),
    ({"every": 0}, "moe.every=0"),
    ({"routing": "expert_choice", "balance": "bias"}, "moe.balance=bias"),
    ({"expert_hidden": 4}, "moe.expert_hidden=4"),
    ({"expert_hidden": 20}, "moe.expert_hidden=20 is no multiple of 8"),
    ({"dense_first": 2}, "moe.dense_first=2"),
    ({"every": 3}, "moe.every=3"),
    ({"feed_forward": "mish"}, "moe.feed_forward='mish'"),
]


@pytest.mark.parametrize(("moe", "message"), REFUSED, ids=lambda value: str(value))
def test_what_cannot_work_is_refused_in_one_line(moe, message):
    with pytest.raises(ValueError) as error:
        config(**moe)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_width_that_the_grouped_product_cannot_take_is_refused():
    with pytest.raises(ValueError, match=r"n_embd=36 is no multiple of 8.*use 40"):
        GPTConfig(**(SHAPE | {"n_embd": 36}), moe=MoEConfig(experts=2))


def test_layers_with_experts():
    shape = dataclasses.replace(config(), n_layer=6, moe=None)
    layers = [
        [i for i in range(6) if dataclasses.replace(shape, moe=MoEConfig(**moe)).is_mixture(i)]
        for moe in ({}, {"dense_first": 2}, {"every": 2}, {"dense_first": 1, "every": 2})
    ]
    assert layers == [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5], [1, 3, 5], [2, 4]]
