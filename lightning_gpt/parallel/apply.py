"""The one place where a network is spread over devices: tasks call it from configure_model."""

import torch
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from lightning_gpt.nn import GPT
from lightning_gpt.parallel.expert_balance import balance_over
from lightning_gpt.parallel.expert_parallel import ExpertMeshes, expert_parallel
from lightning_gpt.parallel.sharding import average_gradients, shard_network
from lightning_gpt.parallel.strategies import FullySharded, Spreading, spread_over
from lightning_gpt.parallel.tensor_parallel import tensor_parallel


def parallelize(net: GPT, strategy: Strategy | None) -> None:
    """Spreads a network as the trainer's strategy says, in place; nothing to do for one device and for DDP.

    The order matters: layers are cut for tensor parallelism, then what each rank has left of them is sharded.

    Args:
        net: whole and alike on every rank, on the strategy's device.
        strategy: of the trainer, whose processes have met.

    Raises:
        ValueError: the network cannot be cut into so many parts.
    """
    if isinstance(strategy, Spreading):
        sharded = isinstance(strategy, FullySharded)
        reshard = sharded and strategy.reshard_after_forward
        spread(net, strategy.device_mesh, sharded, reshard, strategy.expert_meshes)


def balance_experts(net: GPT, strategy: Strategy | None) -> None:
    """Makes the balance loss of a mixture that of all ranks' batches together, in place; for tasks that train on it."""
    if isinstance(strategy, Spreading):
        balance_over(net, strategy.device_mesh["data_parallel"].get_group())
    elif getattr(strategy, "world_size", 1) > 1:
        balance_over(net, torch.distributed.group.WORLD)


def spread(
    net: GPT,
    mesh: DeviceMesh,
    sharded: bool,
    reshard_after_forward: bool = True,
    expert_meshes: ExpertMeshes | None = None,
) -> None:
    """As `parallelize`, over a mesh as `lay_out` makes it.

    Args:
        net: changed in place.
        mesh: with the dimensions "data_parallel" and "tensor_parallel".
        sharded: over the data-parallel ranks.
        reshard_after_forward: see shard_network.
        expert_meshes: where the experts are shared by several ranks, as `lay_out_experts` makes them.
    """
    data, tensor = spread_over(mesh)
    if tensor is not None:
        tensor_parallel(net, tensor)
    alone = expert_parallel(net, expert_meshes, reshard_after_forward) if expert_meshes is not None else set()
    if sharded:
        shard_network(net, data, reshard_after_forward, alone)


def parallelize_head(head: nn.Module, strategy: Strategy | None) -> None:
    """Prepares a small module beside the network, such as the head of a reward model, in place.

    It stays whole on every rank: ranks may call it as often as they like, also without the others.
    """
    if isinstance(strategy, Spreading):
        data, _ = spread_over(strategy.device_mesh)
        for name, _ in list(head.named_parameters(recurse=False)):
            average_gradients(head, name, data)


def may_compile_loss(strategy: Strategy | None) -> bool:
    """Whether a whole loss function may be compiled; of a spread network only the blocks, one by one."""
    return not isinstance(strategy, Spreading)


def compile_blocks(net: GPT, strategy: Strategy | None) -> None:
    """torch.compile of every block, in place; before `parallelize`, whose hooks stay outside.

    Raises:
        ValueError: the strategy will cut the blocks.
    """
    if isinstance(strategy, Spreading) and strategy.tensor_parallel > 1:
        raise ValueError(
            "model.compile=true cannot compile layers that are cut for tensor parallelism: set model.compile=false, or "
            "use lightning_gpt.parallel.FullySharded without tensor_parallel"
        )
    for block in net.blocks:
        block.compile()
