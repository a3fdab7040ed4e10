"""Recomputed, kept in part or kept elsewhere: the gradients are the same bit for bit, and less is kept."""

import gc
from copy import deepcopy
from typing import ClassVar

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from lightning_gpt.hub import save_model
from lightning_gpt.inference.generation import generate
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.parallel.offload import moved
from lightning_gpt.parallel.recompute import Recompute, recompute
from lightning_gpt.parallel.recompute_budget import BlockCost, choose_modes
from lightning_gpt.parallel.selective import keeps

SETTINGS = (1, 2, "full", "selective", "attention", "feed_forward", 0.5, "64KiB", "offload", "full_offload")
SHAPE = {"vocab_size": 84, "n_layer": 2, "n_head": 2, "n_embd": 32, "bias": False}
LLAMA = {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "n_kv_head": 1, "qk_norm": True}
NETWORKS = {
    "gpt": {"block_size": 96, "dropout": 0.1},
    "llama": {"block_size": 200, "n_layer": 4, **LLAMA, "value_skip": True, "input_skip": True},
    "fused": {"block_size": 1200},
    "window": {"block_size": 200, "window": 64, "feed_forward": "relu2", "parallel_residual": True},
    "compiled": {"block_size": 64, "n_layer": 1},
    "experts": {"block_size": 96, "moe": MoEConfig(experts=4)},
}


def network(name: str) -> GPT:
    torch.manual_seed(0)
    net = GPT(GPTConfig(**{**SHAPE, **NETWORKS[name]})).train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # so that every part counts
    return net


def loss(net: GPT, bf16: bool = False) -> torch.Tensor:
    """With dropout drawn from the same state."""
    torch.manual_seed(5)
    ids = torch.randint(84, (1, net.config.block_size))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        if net.config.moe is not None:
            total, _, routers = net.training_loss(ids, ids.roll(1))
            return total + routers
        return net.loss(ids, ids.roll(1))[0]


def gradients(net: GPT, bf16: bool = False) -> list[torch.Tensor]:
    """Of the second step: a budget is known then. And where the generator stands after it."""
    for _ in range(2):
        net.zero_grad()
        loss(net, bf16).backward()
    return [*(one.grad.clone() for one in net.parameters() if one.grad is not None), torch.get_rng_state()]


def kept_bytes(net: GPT, bf16: bool = False) -> int:
    """Of all storages that wait for the backward pass, parameters left out."""
    own = {one.untyped_storage().data_ptr() for one in (*net.parameters(), *net.buffers())}
    storages = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()

    with saved_tensors_hooks(pack, lambda nothing: nothing):
        result = loss(net, bf16)
    del result
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(
    ("name", "bf16"),
    [*((name, False) for name in NETWORKS if name != "compiled"), ("gpt", True), ("llama", True), ("experts", True)],
)
def test_every_setting_gives_the_same_gradients_and_keeps_less(name, bf16):
    net = network(name)
    plain, everything = gradients(net, bf16), kept_bytes(net, bf16)
    for setting in SETTINGS:
        recompute(net, setting)
        for one, two in zip(plain, gradients(net, bf16), strict=True):
            assert torch.equal(one, two), setting
        kept = kept_bytes(net, bf16)
        if setting == "offload":  # in the host's memory it is already
            assert kept == everything
        else:
            assert kept < (0.35 if setting in (1, "full", "full_offload") else 0.93) * everything, setting
    recompute(net, 0)
    assert kept_bytes(net, bf16) == everything


def test_the_settings_keep_what_they_say():
    kept = {}
    net = network("fused")
    for setting in (0, 1, 2, "selective", 0.5):
        recompute(net, setting)
        loss(net).backward()
        kept[setting] = kept_bytes(net)
    N, C, F = 1200, 32, 128
    assert kept[2] == (kept[0] + kept[1]) / 2  # of two blocks one
    # Input, queries with keys and values, attention's result with a number for each query and head, both branches'
    # results, the hidden layer's.
    selective = 2 * 4 * (N * C + 3 * N * C + N * C + 2 * N + 2 * N * C + N * F)
    assert kept["selective"] - kept[1] == selective - 2 * 4 * N * C
    outside = kept[1] - 2 * 4 * N * C
    assert kept[0.5] - outside <= 0.5 * (kept[0] - outside)


def test_parameters_keep_their_names(tmp_path):
    net = network("llama")
    names = list(net.state_dict())
    for setting in ("full", "attention", 0.5):
        recompute(net, setting)
        assert list(net.state_dict()) == names and "blocks.3.attention.qkv.weight" in dict(net.named_parameters())
    save_model(tmp_path / "model", net, None)


def test_a_copy_runs_on_its_own_weights():
    net = network("llama")
    recompute(net, "selective")
    copy = deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    loss(copy).backward()
    assert copy.blocks[0].feed_forward.down.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in net.parameters())


def test_generation_and_validation_are_as_they_were():
    net = network("llama").eval()
    before = generate(net, [[1, 2, 3]], 9, SamplingConfig(temperature=0.0))
    with torch.no_grad():
        value = loss(net)
    for setting in ("full", 0.5, "selective"):
        recompute(net, setting)
        assert generate(net, [[1, 2, 3]], 9, SamplingConfig(temperature=0.0)) == before
        assert generate(net.train(), [[1, 2, 3]], 9, SamplingConfig(temperature=0.0)) == before
        with torch.no_grad():
            assert torch.equal(loss(net.eval()), value)


def test_a_budget_is_chosen_anew_for_larger_batches():
    net = network("llama")
    recompute(net, "2MiB")
    budgeted = net.blocks[0].forward.args[1].func.__self__
    chosen = []
    for rows in (1, 4, 2):
        ids = torch.randint(84, (rows, 200))
        for _ in range(2):
            net.loss(ids, ids)[0].backward()
        chosen.append(list(budgeted.modes))
    assert "full" not in chosen[0] and "full" in chosen[1] and chosen[2] == chosen[1]


class Marked(torch.autograd.Function):
    """The identity; a graph that it is in keeps a Mark alive."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark = Mark()
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Mark:
    """Counted while it lives."""

    alive: ClassVar[set[int]] = set()
    made = 0

    def __init__(self):
        Mark.made += 1
        self.alive.add(id(self))

    def __del__(self):
        self.alive.discard(id(self))


def test_nothing_is_left_of_the_trial():
    net = network("fused")
    recompute(net, 0.5)
    net.blocks[0].feed_forward.register_forward_hook(lambda module, inputs, output: Marked.apply(output))
    loss(net).backward()
    gc.collect()
    assert Mark.made > 3 and not Mark.alive, "a graph holds itself"


def test_a_budget_that_cannot_be_kept_is_said():
    net = network("gpt")
    recompute(net, "1KiB")
    with pytest.warns(UserWarning, match="cannot be kept: with every block computed again they keep"):
        loss(net)
    assert net.blocks[0].forward.args[1].func.__self__.modes == ["full"] * 2


def test_what_saves_most_for_a_flop_comes_first():
    dear = BlockCost({"none": 100, "selective": 40, "full": 10}, {"none": 0, "selective": 5, "full": 90})
    cheap = BlockCost({"none": 100, "selective": 90, "full": 10}, {"none": 0, "selective": 50, "full": 60})
    assert choose_modes([dear, dear, cheap], 300) == ["none", "none", "none"]
    assert choose_modes([dear, dear, cheap], 250) == ["selective", "none", "none"]
    assert choose_modes([dear, dear, cheap], 0.6) == ["selective", "selective", "none"]
    assert choose_modes([dear, dear, cheap], 100) == ["selective", "selective", "full"]
    assert choose_modes([dear, dear, cheap], 61) == ["full", "selective", "full"]
    assert choose_modes([dear, dear, cheap], 1) == ["full", "full", "full"]
    useless = BlockCost({"none": 100, "selective": 120, "full": 100}, {"none": 0, "selective": 5, "full": 90})
    assert choose_modes([useless], 10) == ["none"]


def test_results_that_draw_dropout_are_not_kept():
    flash = torch.ops.aten._scaled_dot_product_flash_attention.default
    assert keeps(flash, (None, None, None), {}) and keeps(flash, (None, None, None, 0.0), {})
    assert not keeps(flash, (None, None, None, 0.1), {}) and not keeps(flash, (None,) * 3, {"dropout_p": 0.1})
    assert not keeps(torch.ops.aten.bmm.default, (), {})


def test_what_is_moved_comes_back():
    weight = torch.nn.Parameter(torch.randn(200, 200))
    x = torch.randn(300, 200, requires_grad=True)
    expected = torch.autograd.grad(torch.tanh(x @ weight).square().sum(), (x, weight))
    calls = []

    class Watched(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, pack, unpack):
            super().__init__(lambda tensor: calls.append(pack(tensor)) or calls[-1], unpack)

    import lightning_gpt.parallel.offload as offload

    before, offload.saved_tensors_hooks = offload.saved_tensors_hooks, Watched
    try:
        with moved({weight.data_ptr()}, set(), torch.device("cpu"), pin=False):
            result = torch.tanh(x @ weight).square().sum()
    finally:
        offload.saved_tensors_hooks = before
    for one, two in zip(torch.autograd.grad(result, (x, weight)), expected):
        assert torch.equal(one, two)
    stayed = [one for one in calls if isinstance(one, torch.Tensor)]
    assert len(calls) - len(stayed) >= 2 and any(one.data_ptr() == weight.data_ptr() for one in stayed)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (-1, "activation_checkpointing=-1 must be 0 .off. or a positive count"),
        (1.0, "activation_checkpointing=1.0 must be a share between 0 and 1"),
        (-0.5, "activation_checkpointing=-0.5 must be a share between 0 and 1"),
        (float("nan"), "must be a share between 0 and 1"),
        ("ful", "activation_checkpointing=ful is not understood: use 0 .off., n .every n-th block., full, selective"),
        ("0GiB", "activation_checkpointing=0GiB is not understood"),
        (True, "activation_checkpointing=True is not understood"),
    ],
)
def test_wrong_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        Recompute.of(setting)


def test_what_the_compiler_cannot_do_is_refused():
    for setting, message in (("2GiB", "takes a share, such as 0.5"), ("offload", "use compile=false")):
        with pytest.raises(ValueError, match=message):
            recompute(network("gpt"), setting, compile=True)


@pytest.fixture
def fresh_compiler():
    """What is compiled for one test, and the compiler's budget, do not meet the next."""
    from torch._functorch import config

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    config.activation_memory_budget = 1.0


def test_compiled_losses_keep_less_too(fresh_compiler):
    net = network("compiled")
    kept, results = [], []
    for setting in (0, 1, "selective", 0.5):
        torch._dynamo.reset()
        recompute(net, setting, compile=True)
        net.loss = torch.compile(GPT.loss.__get__(net), backend="aot_eager_decomp_partition")
        results.append(gradients(net))
        kept.append(kept_bytes(net))
    assert max(kept[1:]) < 0.7 * kept[0]
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
