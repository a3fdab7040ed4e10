"""Weights, gradients and optimizer states, against the real ones."""

from dataclasses import replace

import pytest
import torch

from lightning_gpt.nn import GPT, GPTConfig, KVCache
from lightning_gpt.nn.flops import kv_cache_bytes
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.optim import SGD, AdamW, AdamW8bit, MuonAdamW
from lightning_gpt.planning.memory_job import TrainingJob, inventory
from lightning_gpt.planning.memory_states import (
    communication_bytes,
    gradient_bytes,
    optimizer_bytes,
    step_bytes,
    weight_bytes,
)

DENSE = {"vocab_size": 100, "block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 64}
NETWORKS = {
    "gpt": GPTConfig(**DENSE),
    "llama": GPTConfig(**DENSE, position="rotary", norm="rmsnorm", bias=False, n_kv_head=2, tie_embeddings=False),
    "experts": GPTConfig(**DENSE, moe=MoEConfig(experts=4)),
}
OPTIMIZERS = {
    "AdamW": AdamW(),
    "AdamW8bit": AdamW8bit(),
    "MuonAdamW": MuonAdamW(),
    "SGD": SGD(),
    "plain": SGD(momentum=0),
}


def state_nbytes(optimizer) -> int:
    """Bytes of every state, shared tables once."""
    found = {
        value.data_ptr(): value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    }
    return sum(found.values())


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_states_are_those_of_the_real_optimizer(network, optimizer, precision):
    job = TrainingJob(NETWORKS[network], 1, 16, OPTIMIZERS[optimizer], precision)
    net = GPT(job.config).to(job.weight_dtype)
    net.build_tables()
    real = job.optimizer.build(net)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    real.step()
    assert optimizer_bytes(job) == state_nbytes(real)
    assert gradient_bytes(job) == sum(parameter.grad.nbytes for parameter in net.parameters())
    assert weight_bytes(job) == sum(one.nbytes for one in (*net.parameters(), *net.buffers()))


def test_shards_are_those_of_fsdp():
    """A process group that only pretends: this process is the first of eight ranks, which has the most."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from lightning_gpt.parallel.sharding import shard_network

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    try:
        for config in NETWORKS.values():
            net = GPT(config)
            shard_network(net, init_device_mesh("cpu", (8,)))
            job = TrainingJob(config, 1, 16, strategy="fsdp", devices=8)
            local = sum(parameter.to_local().nbytes for parameter in net.parameters())
            assert gradient_bytes(job) == local
            assert weight_bytes(job) == local + inventory(config)[1]
            optimizer = job.optimizer.build(net)
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            states = [value for state in optimizer.state.values() for value in state.values()]
            real = sum(getattr(value, "_local_tensor", value).nbytes for value in states)
            assert optimizer_bytes(job) == real
    finally:
        torch.distributed.destroy_process_group()


def test_what_several_devices_add():
    one = TrainingJob(NETWORKS["gpt"], 1, 16)
    assert communication_bytes(one) == 0
    ddp = replace(one, strategy="ddp", devices=4)
    assert communication_bytes(ddp) == gradient_bytes(one)  # buckets
    assert communication_bytes(replace(ddp, bucket_view=True)) == 0
    blocks = gradient_bytes(one, range(1))
    outside = gradient_bytes(one) - 2 * blocks
    assert communication_bytes(replace(one, strategy="fsdp", devices=4)) == outside + 3 * blocks


def test_optimizers_that_work_in_place_need_nothing_besides():
    job = TrainingJob(NETWORKS["gpt"], 1, 16)
    assert step_bytes(job) == 0
    hidden = sum(one.numbers for one in inventory(job.config)[0] if one.kind == "hidden")
    assert step_bytes(replace(job, optimizer=MuonAdamW())) > 4 * hidden
    assert (
        step_bytes(replace(job, optimizer=AdamW8bit()))
        > 0
        == step_bytes(replace(job, optimizer=AdamW8bit(), device="cuda"))
    )


def test_an_optimizer_of_another_kind_is_named():
    class Lion:
        pass

    with pytest.raises(ValueError, match=r"model\.optimizer=Lion is unknown to the memory planner"):
        optimizer_bytes(TrainingJob(NETWORKS["gpt"], 1, 16, Lion()))


@pytest.mark.parametrize("fields", [{}, {"n_kv_head": 1}, {"window": 4, "window_pattern": "SL"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_is_the_real_one(fields, dtype):
    config = replace(NETWORKS["gpt"], **fields)
    assert 3 * kv_cache_bytes(config, 12, dtype) == KVCache(config, 3, 12, dtype).nbytes
