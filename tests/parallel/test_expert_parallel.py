"""Experts that are shared by processes give the losses, gradients and files of one process that has them all."""

import json
import os

import pytest
import torch
import yaml
from torch.distributed.tensor.debug import CommDebugMode

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.cli import main
from lightning_gpt.hub.checkpoint import read_checkpoint
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.moe import mixtures
from lightning_gpt.parallel.apply import spread
from lightning_gpt.parallel.expert_balance import balance_over
from lightning_gpt.parallel.expert_parallel import check_experts, lay_out_experts
from lightning_gpt.parallel.gradients import clip_by_norm
from lightning_gpt.parallel.strategies import FullySharded, gradients_unsynced, lay_out

SHAPE = {
    "vocab_size": 37,
    "block_size": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "position": "rotary",
    "norm": "rmsnorm",
    "feed_forward": "swiglu",
    "bias": False,
}
MIXTURES = {
    "switch": {"experts": 4, "top_k": 1, "renormalize": False, "balance_coefficient": 0.1},
    "mixtral": {"experts": 8, "top_k": 2, "expert_hidden": 48, "balance_coefficient": 0.1},
    "deepseek": {"experts": 4, "top_k": 2, "routing": "sigmoid", "balance": "bias", "shared": 1, "dense_first": 1},
    "gelu": {"experts": 4, "top_k": 3, "expert_hidden": 40, "feed_forward": "gelu", "every": 2},
    "idle": {"experts": 4, "top_k": 2, "balance": "bias"},  # the last two get no token: a rank has nothing to do
    "capacity": {"experts": 4, "top_k": 2, "capacity_factor": 0.7, "balance": "none"},
    "choice": {"experts": 4, "routing": "expert_choice", "capacity_factor": 1.5, "balance": "none"},
}
BY_RANK = ("capacity", "choice")
"""What a rank decides by its own tokens, as in data parallelism (GShard's groups)."""

PLACES = {  # replicas, shards of each, ranks that share the experts
    2: {(1, 2, 2): list(MIXTURES)},
    4: {(1, 4, 4): ["switch"], (1, 4, 2): ["mixtral", "gelu", "idle"], (2, 2, 2): ["deepseek"]},
}


def batch(ranks: int, rank: int):
    """This rank's rows of a batch of eight."""
    generator = torch.Generator().manual_seed(3)
    ids, targets = torch.randint(37, (2, 8, 16), generator=generator)
    return ids[rank::ranks], targets[rank::ranks]


def built(name: str) -> GPT:
    torch.manual_seed(0)
    net = GPT(GPTConfig.from_dict({**SHAPE, "moe": MIXTURES[name]}))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for _, mixture in mixtures(net):
            if name == "idle":
                mixture.router.balance_bias_E[2:] = -1e6
    return net


def mean_loss(net: GPT, ids, targets):
    total, count, routers = net.training_loss(ids, targets)
    return total / count + routers


def compared(name: str, replicas: int, shards: int, size: int) -> dict[str, float]:
    """Largest differences between the network on one process and the spread one."""
    whole, net = built(name), built(name)
    ranks, rank = replicas * shards, torch.distributed.get_rank()
    balance_over(net, torch.distributed.group.WORLD)
    meshes = lay_out_experts("cpu", replicas, shards, size)
    spread(net, lay_out("cpu", replicas, shards, 1), True, expert_meshes=meshes)
    held = {p._local_tensor.untyped_storage().nbytes() for _, m in mixtures(net) for p in m.experts.parameters()}
    right = {p.nbytes // ranks * replicas for _, m in mixtures(whole) for p in m.experts.parameters()}
    assert held == right  # no rank keeps the others' experts

    ids, targets = batch(ranks, rank)
    with gradients_unsynced(net):  # a micro-batch of an accumulation
        mean_loss(net, ids, targets).backward()
    loss = mean_loss(net, ids, targets)
    loss.backward()
    torch.distributed.all_reduce(loss.detach_())
    parts = [batch(ranks, r) for r in range(ranks)] if name in BY_RANK else [batch(1, 0)]
    reference = sum(mean_loss(whole, *part) for part in parts) / len(parts)
    (2 * reference).backward()

    worst = {"loss": (loss / ranks / reference - 1).abs().item()}
    largest = max(parameter.grad.abs().max().item() for parameter in whole.parameters())
    for (_, ours), (_, theirs) in zip(net.named_parameters(), whole.named_parameters(), strict=True):
        assert ours.grad.placements == ours.placements
        difference = (ours.grad.full_tensor() - theirs.grad).abs().max().item() / largest
        worst["gradient"] = max(worst.get("gradient", 0), difference)
    norms = [clip_by_norm(list(n.parameters()), 0.5) for n in (net, whole)]
    assert norms[1] > 0.5
    worst["norm"] = (norms[0] / norms[1] - 1).abs().item()

    state, expected = net.state_dict(), whole.state_dict()
    assert state.keys() == expected.keys()
    full = {key: getattr(value, "full_tensor", lambda v=value: v)() for key, value in state.items()}
    worst["file"] = max((full[key] - expected[key]).abs().max().item() for key in expected)
    net.eval(), whole.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        losses = net.loss(ids, targets)[0], whole.loss(ids, targets)[0]
    worst["bf16"] = (losses[0] / losses[1] - 1).abs().item() / 100
    return worst


@pytest.mark.parametrize("count", PLACES)
def test_shared_experts_are_one_process(count, processes):
    def job(rank: int):
        torch.distributed.init_process_group("gloo")
        cases = [(place, name) for place, names in PLACES[count].items() for name in names]
        return {(place, name): compared(name, *place) for place, name in cases}

    for outcome in processes(count, job, timeout=120):
        for case, worst in outcome.value.items():
            for what, difference in worst.items():
                print(case, what, difference)
                assert difference <= (0 if what == "file" else 1e-5), (case, what, difference)
