"""Expert parallelism (GShard; Lepikhin et al., 2020): every rank has some experts of each mixture, tokens go to them.

Which expert a token wants is decided where the token is. Its row travels to the expert's rank and the result back, by
one all-to-all each; gradients go the same ways. The layer itself knows nothing of it: what it calls for "the outputs
of these rows, so many for each expert" is answered by many devices. So all kinds of routing work; capacity and expert
choice look at the tokens of one rank (GShard's groups), as in all data parallelism, not at the batch of all ranks.

Legend: R ranks that share the experts, E experts, e = E / R of them here, S rows of this rank's tokens, s rows for
this rank's experts, C width.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_to_all_single_autograd, wait_tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from lightning_gpt.nn import GPT
from lightning_gpt.nn.experts import Experts
from lightning_gpt.nn.moe import mixtures
from lightning_gpt.parallel.local_parameters import local, use_locally


class ExpertMeshes(NamedTuple):
    """How the experts lie over the data-parallel ranks."""

    ranks: DeviceMesh
    """Share the experts, each has some: neighbours."""
    copies: DeviceMesh
    """Have the same experts and shard their weights; of two dimensions for copies of the whole network."""


def lay_out_experts(device: str, replicas: int, shards: int, size: int) -> ExpertMeshes:
    """Over all processes.

    Args:
        device: its type.
        replicas: copies of the network.
        shards: data-parallel ranks of each.
        size: ranks that share the experts; divides `shards`.
    """
    if replicas == 1:
        mesh = init_device_mesh(device, (shards // size, size), mesh_dim_names=("expert_copies", "expert_parallel"))
        return ExpertMeshes(mesh["expert_parallel"], mesh["expert_copies"])
    names = ("replicas", "expert_copies", "expert_parallel")
    mesh = init_device_mesh(device, (replicas, shards // size, size), mesh_dim_names=names)
    return ExpertMeshes(mesh["expert_parallel"], mesh["replicas", "expert_copies"])


def check_experts(net: GPT, size: int) -> None:
    """Refuses a network whose experts cannot be shared by `size` ranks.

    Raises:
        ValueError: names the field, its value and what would do.
    """
    moe = net.config.moe
    if not mixtures(net):
        raise ValueError(
            f"trainer.strategy.expert_parallel={size} needs a network with a mixture of experts: set model.config.moe, "
            "or trainer.strategy.expert_parallel=1"
        )
    if moe.experts % size:
        good = ", ".join(str(n) for n in range(1, moe.experts + 1) if moe.experts % n == 0)
        raise ValueError(
            f"trainer.strategy.expert_parallel={size} does not divide model.config.moe.experts={moe.experts}: use one "
            f"of {good}, or another number of experts"
        )
    if net.blocks[0]._compiled_call_impl is not None:
        raise ValueError(
            "model.compile=true cannot compile layers whose tokens travel to other devices: set model.compile=false, "
            "or trainer.strategy.expert_parallel=1"
        )


def expert_parallel(net: GPT, meshes: ExpertMeshes, reshard_after_forward: bool = True) -> set[nn.Parameter]:
    """Gives every rank its experts of each mixture, in place.

    The loss of a rank is the mean over its own tokens and gradients are the mean over all ranks, as everywhere in data
    parallelism. An expert meets the tokens of R ranks at once, so that its gradient is a sum over them, which is
    divided by R here; the mean over the copies is FSDP's.

    Args:
        net: whole and alike on every rank; its experts' parameters become DTensors.
        meshes: see lay_out_experts.
        reshard_after_forward: of weights that copies shard, see shard_network.

    Returns:
        the experts' parameters that nobody else has, so that nothing is to be gathered or averaged.

    Raises:
        ValueError: see check_experts.
    """
    ranks, copies = meshes
    check_experts(net, ranks.size())
    alone: set[nn.Parameter] = set()
    for _, mixture in mixtures(net):
        experts = mixture.experts
        for name, parameter in list(experts.named_parameters(recurse=False)):
            mine = distribute_tensor(parameter.detach(), ranks, [Shard(0)])
            experts.register_parameter(name, nn.Parameter(mine, requires_grad=parameter.requires_grad))
        use_locally(experts, {name: partial(_mine, ranks=ranks.size()) for name, _ in experts.named_parameters()})
        experts.forward = partial(_answer, experts, ranks.get_group())
        if copies.size() > 1:
            fully_shard(
                experts,
                mesh=copies,
                reshard_after_forward=reshard_after_forward,
                shard_placement_fn=partial(_within_experts, shards=copies.size(copies.ndim - 1)),
            )
        else:
            alone.update(experts.parameters(recurse=False))
    return alone


def _within_experts(parameter: nn.Parameter, shards: int) -> Shard:
    """Rows of every expert's matrix if they divide, for there may be fewer experts left than shards."""
    return Shard(1 if parameter.shape[1] % shards == 0 else 0)


def _mine(parameter: Tensor, ranks: int) -> Tensor:
    """This rank's experts; their gradient a mean, as that of all other parameters."""
    mine = local(parameter)
    if mine.requires_grad:
        mine.register_hook(lambda grad: grad / ranks)
    return mine


def _answer(experts: Experts, group: ProcessGroup, x_SC: Tensor, rows_E: Tensor) -> Tensor:
    """In place of Experts.forward: the same outputs, (S, C)."""
    ranks, rank = group.size(), group.rank()
    rows_RRe = rows_E.new_empty(ranks, ranks, len(rows_E) // ranks)  # from, to, expert
    torch.distributed.all_gather_into_tensor(rows_RRe.view(-1), rows_E, group=group)
    rows_Re = rows_RRe[:, rank]
    rows_RR = rows_RRe.sum(-1).tolist()  # the host has to know how much travels
    sent_R, received_R = rows_RR[rank], [rows_R[rank] for rows_R in rows_RR]
    x_sC = _exchange(x_SC, received_R, sent_R, group)
    order_s, back_s = _by_expert(rows_Re, len(x_sC))
    y_sC = _compute(experts, _Reorder.apply(x_sC, order_s, back_s), rows_Re.sum(0))
    return _exchange(_Reorder.apply(y_sC, back_s, order_s), sent_R, received_R, group)


def _exchange(x: Tensor, received_R: list[int], sent_R: list[int], group: ProcessGroup) -> Tensor:
    """Rows from every rank, in the ranks' order; of x the first sent_R[0] rows go to rank 0, and so on."""
    return wait_tensor(all_to_all_single_autograd(x.contiguous(), received_R, sent_R, group))


def _by_expert(rows_Re: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Rows come rank by rank, each rank's by expert: their order by expert, and the way back."""
    ranks, experts = rows_Re.shape
    expert_Re = torch.arange(experts, device=rows_Re.device).repeat(ranks)
    expert_s = expert_Re.repeat_interleave(rows_Re.flatten(), output_size=rows)
    order_s = expert_s.argsort(stable=True)
    return order_s, torch.empty_like(order_s).index_copy_(0, order_s, torch.arange(rows, device=rows_Re.device))


def _compute(experts: Experts, x_sC: Tensor, rows_e: Tensor) -> Tensor:
    if len(x_sC):
        return Experts.forward(experts, x_sC, rows_e)
    # Nobody wants these experts: the grouped product has no gradient then, yet one of zeros is waited for.
    return experts.loop(x_sC.to(experts.dtype_of(x_sC)), rows_e)


class _Reorder(torch.autograd.Function):
    """x[order], of which `back` is the inverse; autograd's own backward would scatter."""

    @staticmethod
    def forward(ctx, x_sC: Tensor, order_s: Tensor, back_s: Tensor) -> Tensor:
        ctx.save_for_backward(back_s)
        return x_sC.index_select(0, order_s)

    @staticmethod
    def backward(ctx, grad_sC: Tensor) -> tuple[Tensor, None, None]:
        return grad_sC.index_select(0, ctx.saved_tensors[0]), None, None
