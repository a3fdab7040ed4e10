"""Fully sharded data parallelism (FSDP2), applied to a network from outside: the network knows nothing of devices."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate

from lightning_gpt.nn import GPT
from lightning_gpt.parallel.group_sums import reduce_gradient
from lightning_gpt.parallel.local_parameters import local, use_locally

SHARDED_METHODS = ("loss", "answer_loss", "hidden")
"""Of a GPT, besides forward: what training and validation call, where weights must be gathered as forward does."""


def shard_network(
    net: GPT,
    mesh: DeviceMesh,
    reshard_after_forward: bool | int = True,
    left_alone: frozenset[nn.Parameter] | set[nn.Parameter] = frozenset(),
) -> None:
    """Spreads every block's weights, then what is left of the network, over the mesh (Zhao et al., 2023).

    Weights are gathered block by block while they are needed; gradients and optimizer states stay sharded.

    Args:
        net: changed in place; its parameters become DTensors.
        mesh: the data-parallel ranks; of two dimensions (replicas, shards) for copies of a sharded network.
        reshard_after_forward: whether a block's weights are freed between its forward and backward pass, or over how
            many ranks they stay sharded then.
        left_alone: parameters that are spread in another way.
    """
    left_alone = left_alone | average_numbers(net, mesh)
    for block in net.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward, ignored_params=left_alone)
    # What is left is needed at both ends of a pass: freed between them it would be gathered twice.
    fully_shard(net, mesh=mesh, reshard_after_forward=False, ignored_params=left_alone)
    gather_once(net, SHARDED_METHODS)


def gather_once(net: nn.Module, methods: tuple[str, ...]) -> None:
    """Lets methods gather the network's weights as forward does, unless they are called by one another.

    FSDP frees weights when a second pass ends within the first, though they are to be kept: the largest matrices,
    embedding and head, would be gathered twice a step.
    """
    running: list[str] = []

    def outermost(name: str, gathering: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(plain)
        def call(*args: Any, **kwargs: Any) -> Any:
            if running:
                return plain(*args, **kwargs)
            running.append(name)
            try:
                return gathering(*args, **kwargs)
            finally:
                running.clear()

        return call

    for name in ("forward", *methods):
        plain = getattr(net, name)
        if name != "forward":  # whose hooks gather already
            register_fsdp_forward_method(net, name)
        setattr(net, name, outermost(name, getattr(net, name), plain))


def average_numbers(net: nn.Module, mesh: DeviceMesh) -> set[nn.Parameter]:
    """Parameters without dimensions, which cannot be sharded: see `average_gradients`."""
    owned = [
        (owner, name) for owner in net.modules() for name, p in owner.named_parameters(recurse=False) if not p.ndim
    ]
    return {average_gradients(owner, name, mesh) for owner, name in owned}


def average_gradients(owner: nn.Module, name: str, mesh: DeviceMesh) -> nn.Parameter:
    """Keeps a parameter whole on every rank and averages its gradient in the backward pass, without FSDP.

    Args:
        owner: uses it in its forward pass.
        name: of the parameter; plain, or alike on all tensor-parallel ranks.
        mesh: the data-parallel ranks.
    """
    parameter = owner._parameters[name]
    whole = local(parameter.detach())
    spread = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    owner.register_parameter(name, nn.Parameter(spread, requires_grad=parameter.requires_grad))
    use_locally(owner, {name: partial(_averaged, mesh=mesh)})
    return owner._parameters[name]


def _averaged(parameter: Tensor, mesh: DeviceMesh) -> Tensor:
    number = local(parameter)
    for dimension in range(mesh.ndim):
        number = reduce_gradient(number, mesh.get_group(dimension), mean=True)
    return number
