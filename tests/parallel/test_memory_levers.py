"""Two sharded processes with every lever of memory: the gradients and weights of one process without any."""

from copy import deepcopy
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.optim import AdamW, InBackward
from lightning_gpt.parallel.offload import offload_policy
from lightning_gpt.parallel.recompute import recompute

CONFIG = GPTConfig(
    vocab_size=41, block_size=24, n_layer=2, n_head=2, n_embd=32, bias=False, position="rotary", norm="rmsnorm"
)
SETTINGS = (0, "full", "selective", "attention", 0.5)
STEPS = 2


def batch(rank: int) -> torch.Tensor:
    return torch.randint(41, (2, 24), generator=torch.Generator().manual_seed(rank))


def sharded(net: GPT, setting: int | float | str, offload: bool) -> GPT:
    recompute(net, setting)
    mesh = init_device_mesh("cpu", (2,))
    policy = offload_policy(offload, torch.device("cpu"))
    for block in net.blocks:
        fully_shard(block, mesh=mesh, offload_policy=policy)
    fully_shard(net, mesh=mesh, offload_policy=policy)
    register_fsdp_forward_method(net, "loss")
    return net


def trained(net: GPT, stepping: bool, ids: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights after some steps, and the norm of the last gradient."""
    optimizer = AdamW(lr=1e-2).build(net)
    optimizer = InBackward(optimizer) if stepping else optimizer
    for _ in range(STEPS):
        optimizer.zero_grad()
        (sum(net.loss(one, one.roll(1))[0] for one in ids) / len(ids)).backward()
        norm = optimizer.take_norm() if stepping else norm_of(net)
        optimizer.step()
    weights = {name: whole(one.detach()) for name, one in net.named_parameters()}
    return weights | {"norm": norm}


def norm_of(net: GPT) -> torch.Tensor:
    return whole(torch.nn.utils.get_total_norm([one.grad for one in net.parameters()]))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def work(rank: int, place: Path) -> None:
    """One of two processes."""
    distributed.init_process_group(
        "gloo", f"file://{place}/meet", timeout=timedelta(seconds=60), rank=rank, world_size=2
    )
    torch.manual_seed(0)
    net, found = GPT(CONFIG), {}
    for setting in SETTINGS:
        found[setting, "step"] = trained(sharded(deepcopy(net), setting, False), False, [batch(rank)])
    for setting, offload in ((0, False), ("selective", True)):
        found[setting, f"in backward, {offload}"] = trained(
            sharded(deepcopy(net), setting, offload), True, [batch(rank)]
        )
    if rank == 0:
        torch.save(found, place / "found.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture
def found(tmp_path, one_thread):
    torch.multiprocessing.start_processes(work, (tmp_path,), nprocs=2, start_method="fork")
    return torch.load(tmp_path / "found.pt", weights_only=False)


def test_two_sharded_processes_with_every_lever_are_one_without(found):
    torch.manual_seed(0)
    expected = trained(GPT(CONFIG), False, [batch(0), batch(1)])
    assert len(found) == len(SETTINGS) + 2
    for lever, weights in found.items():
        for name, one in expected.items():
            torch.testing.assert_close(weights[name], one, rtol=1e-4, atol=1e-5, msg=f"{lever}: {name}")
    # Recomputing changes no bit of what two processes do without it.
    for lever, weights in found.items():
        for name in set(expected) - {"norm"}:
            assert torch.equal(weights[name], found[0, "step"][name]), (lever, name)
