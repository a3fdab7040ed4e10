"""A network that is cut over devices gives the losses, gradients, logits and files of the whole one."""

import pytest
import torch

from lightning_gpt.hub.adapters import LoRA, add_adapters
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.parallel.apply import spread
from lightning_gpt.parallel.gradients import clip_by_norm, clip_by_value
from lightning_gpt.parallel.row_order import dealt_rows, take_rows
from lightning_gpt.parallel.strategies import lay_out
from lightning_gpt.parallel.tensor_parallel import check_divisible, tensor_parallel

SHAPE = {"vocab_size": 37, "block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
LLAMA = {
    **SHAPE,
    "n_kv_head": 2,
    "position": "rotary",
    "norm": "rmsnorm",
    "feed_forward": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}
CONFIGS = {
    "gpt2": SHAPE,
    "llama": LLAMA,
    "qwen": {**LLAMA, "qkv_bias": True, "qk_norm": True, "qk_norm_affine": True, "logit_softcap": 5.0},
    "skips": {**SHAPE, "value_skip": True, "input_skip": True, "attention_sinks": True, "norm_place": "sandwich"},
    "alibi": {**SHAPE, "position": "alibi", "parallel_residual": True, "feed_forward": "geglu"},
    "padded": {**SHAPE, "vocab_multiple": 32, "position": "sinusoidal", "attention_softcap": 3.0},
    "tiny vocabulary": {**SHAPE, "vocab_size": 3, "tie_embeddings": False},
    "experts": {**LLAMA, "moe": {"experts": 4, "expert_hidden": 32, "every": 2}},
}
MESHES = {  # replicas, shards, tensor-parallel ranks; GPT-2 and LLaMA train in test_equality.py
    2: {(1, 1, 2): ["qwen", "skips", "alibi", "padded", "tiny vocabulary", "experts"], (1, 2, 1): ["skips"]},
    4: {(1, 2, 2): ["skips"], (2, 1, 2): ["llama"]},
}


def batch(ranks: int, rank: int):
    """This rank's rows of a batch of four, whose targets are masked unevenly."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, (4, 16), generator=generator)
    targets = torch.randint(3, (4, 16), generator=generator)
    targets[:, :8] = -100
    return ids[rank::ranks], targets[rank::ranks]


def built(config: dict) -> GPT:
    torch.manual_seed(0)
    net = GPT(GPTConfig.from_dict(config))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net


def compared(config: dict, replicas: int, shards: int, tensor: int) -> dict[str, float]:
    """Largest differences between the whole network and the spread one."""
    whole, net = built(config), built(config)
    mesh = lay_out("cpu", replicas, shards, tensor)
    spread(net, mesh, sharded=replicas * shards > 1)
    data = mesh["data_parallel"]
    ids, targets = batch(data.size(), data.get_local_rank())
    loss, _ = net.loss(ids, targets)
    (data.size() * loss).backward()  # gradients are averaged over the data-parallel ranks
    torch.distributed.all_reduce(loss.detach_(), group=data.get_group())
    right, _ = whole.loss(*batch(1, 0))
    right.backward()
    worst = {"loss": (loss / right - 1).abs().item()}

    def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        return (getattr(ours, "full_tensor", lambda: ours)() - theirs).abs().max().item()

    orders = {p: m.row_order for m in net.modules() if hasattr(m, "row_order") for p in m.parameters()}
    pairs = list(zip(net.parameters(), whole.parameters(), strict=True))
    largest = max(parameter.grad.abs().max().item() for parameter in whole.parameters() if parameter.grad is not None)
    for (name, ours), (_, theirs) in zip(net.named_parameters(), whole.named_parameters(), strict=True):
        assert ours.grad is not None or theirs.grad is None, name
        if theirs.grad is not None:
            assert ours.grad.placements == ours.placements
            expected = theirs.grad[orders[ours]] if ours in orders else theirs.grad
            worst["gradient"] = max(worst.get("gradient", 0), difference(ours.grad, expected) / largest)
    norms = [clip_by_norm(list(n.parameters()), 0.5) for n in (net, whole)]
    assert norms[1] > 0.5
    worst["norm"] = (norms[0] / norms[1] - 1).abs().item()
    for n in (net, whole):
        clip_by_value(list(n.parameters()), 0.01)
    for ours, theirs in pairs:
        if theirs.grad is not None:
            expected = theirs.grad[orders[ours]] if ours in orders else theirs.grad
            worst["clipped"] = max(worst.get("clipped", 0), difference(ours.grad, expected))
    with torch.no_grad():
        worst["logits"] = difference(net(ids), whole(ids))
    state, expected = net.state_dict(), whole.state_dict()
    assert state.keys() == expected.keys()
    worst["file"] = max(difference(state[name], expected[name]) for name in expected)
    changed = {name: value * 2 for name, value in state.items()}
    net.load_state_dict(changed)
    worst["loaded"] = max(difference(value, 2 * expected[name]) for name, value in net.state_dict().items())
    return worst


@pytest.mark.parametrize("count", [2, 4])
def test_spread_networks_are_the_whole_one(count, processes):
    def job(rank: int):
        torch.distributed.init_process_group("gloo")
        cases = [(mesh, name) for mesh, names in MESHES[count].items() for name in names]
        return {(mesh, name): compared(CONFIGS[name], *mesh) for mesh, name in cases}

    for outcome in processes(count, job, timeout=120):
        for case, worst in outcome.value.items():
            for what, difference in worst.items():
                assert difference <= (0 if what in ("file", "loaded") else 1e-5), (case, what, difference)


def test_adapters_are_refused(processes):
    def job(rank: int):
        torch.distributed.init_process_group("gloo")
        net = built(CONFIGS["llama"])
        add_adapters(net, LoRA(rank=2))
        with pytest.raises(ValueError, match=r"model.lora puts adapters into blocks.0.attention"):
            tensor_parallel(net, lay_out("cpu", 1, 1, 1)["tensor_parallel"])

    processes(1, job)


def test_rows_are_dealt_and_taken_back():
    order = dealt_rows((4, 2, 2), 2)
    assert order.tolist() == [0, 1, 4, 6, 2, 3, 5, 7]
    rows = torch.arange(8.0)
    assert torch.equal(take_rows(take_rows(rows, order), order.argsort()), rows)


@pytest.mark.parametrize(
    ("config", "size", "told"),
    [
        ({"n_head": 4, "n_embd": 32}, 3, r"3 devices does not divide model.config.n_head=4: use one of 1, 2, 4"),
        (LLAMA, 4, r"n_kv_head=2: use one of 1, 2"),
        ({"n_head": 4, "n_embd": 32, "ffn_hidden": 42}, 4, r"ffn_hidden=42: use one of 1, 2,"),
    ],
)
def test_sizes_that_do_not_divide_are_named(config, size, told):
    with pytest.raises(ValueError, match=told):
        check_divisible(GPTConfig(**config), size)
