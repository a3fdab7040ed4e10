"""Embedding and head with their rows, the vocabulary, over tensor-parallel ranks; the loss without gathering logits.

Legend: N tokens, C width, V vocabulary, v the rows of this rank.
"""

from functools import partial

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_gpt.nn import GPT
from lightning_gpt.nn.loss import CHUNK_LOGITS, IGNORE_INDEX
from lightning_gpt.parallel.local_parameters import reduce_gradient


def split_vocabulary(net: GPT, mesh: DeviceMesh) -> None:
    """Gives every rank a run of the vocabulary's rows (Shoeybi et al., 2019, section 3), in place.

    The embedding sums what the ranks found; `logits` are gathered; the loss exchanges three numbers a token.
    """
    tied = net.head.weight is net.token_embedding.weight
    parallelize_module(net.token_embedding, mesh, RowwiseParallel(input_layouts=Replicate()))
    if tied:
        net.head.weight = net.token_embedding.weight
    style = ColwiseParallel(output_layouts=Replicate())
    if tied:  # the matrix is there already: only what goes in and comes out
        style = _OnlyActivations(output_layouts=Replicate())
    parallelize_module(net.head, mesh, style)
    net.cross_entropy = partial(_network_cross_entropy, net)


class _OnlyActivations(ColwiseParallel):
    """ColwiseParallel of a module whose parameters are spread already."""

    def _partition_linear_fn(self, name: str, module: torch.nn.Module, device_mesh: DeviceMesh) -> None:
        pass


def _network_cross_entropy(net: GPT, hidden_NC: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """In place of GPT.cross_entropy."""
    return parallel_cross_entropy(
        hidden_NC, net.head.weight, targets_N, net.config.vocab_size, net.config.logit_softcap
    )


class _ParallelSoftmax(torch.autograd.Function):
    """Sum of cross-entropies of logits whose columns are spread over a group (Shoeybi et al., 2019)."""

    @staticmethod
    def forward(ctx, logits_Nv: Tensor, targets_N: Tensor, first: int, group: ProcessGroup) -> Tensor:
        highest_N = logits_Nv.amax(-1) if logits_Nv.shape[1] else logits_Nv.new_full(targets_N.shape, -torch.inf)
        torch.distributed.all_reduce(highest_N, ReduceOp.MAX, group=group)
        exp_Nv = (logits_Nv - highest_N[:, None]).exp_()
        mine_N = (targets_N >= first) & (targets_N < first + logits_Nv.shape[1])
        column_N = torch.where(mine_N, targets_N - first, 0)
        if logits_Nv.shape[1]:
            wanted_N = torch.where(mine_N, logits_Nv.gather(1, column_N[:, None])[:, 0], 0.0)
        else:
            wanted_N = torch.zeros_like(highest_N)
        sums_2N = torch.stack((exp_Nv.sum(-1), wanted_N))
        torch.distributed.all_reduce(sums_2N, group=group)
        total_N, wanted_N = sums_2N
        valid_N = targets_N != IGNORE_INDEX
        ctx.save_for_backward(exp_Nv.div_(total_N[:, None]), column_N, mine_N, valid_N)
        return torch.where(valid_N, total_N.log() + highest_N - wanted_N, 0.0).sum()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """(softmax - onehot) of the columns that are here."""
        softmax_Nv, column_N, mine_N, valid_N = ctx.saved_tensors
        grad_Nv = softmax_Nv * (valid_N * grad)[:, None]
        if grad_Nv.shape[1]:
            grad_Nv.scatter_add_(1, column_N[:, None], -(mine_N * grad)[:, None])
        return grad_Nv, None, None, None


def parallel_cross_entropy(
    hidden_NC: Tensor, weight_VC: DTensor, targets_N: Tensor, vocab_size: int, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """As nn.loss.linear_cross_entropy, the head's rows spread over the ranks of weight_VC's mesh.

    Every rank has the same hidden states and targets, and gets the same sum.
    """
    mesh = weight_VC.device_mesh
    assert weight_VC.placements == (Shard(0),)
    first = mesh.get_local_rank() * -(-weight_VC.shape[0] // mesh.size())
    weight_vC = weight_VC.to_local()[: max(vocab_size - first, 0)]
    group = mesh.get_group()
    hidden_NC = reduce_gradient(hidden_NC, group)

    def part(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(hidden, weight).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return _ParallelSoftmax.apply(logits, targets, first, group)

    rows = max(CHUNK_LOGITS // max(-(-weight_VC.shape[0] // mesh.size()), 1), 1)
    if len(hidden_NC) <= rows:
        loss = part(hidden_NC, weight_vC, targets_N)
    else:  # logits of one chunk at a time, made again in the backward pass
        chunks = zip(hidden_NC.split(rows), targets_N.split(rows))
        loss = sum(checkpoint(part, hidden, weight_vC, targets, use_reentrant=False) for hidden, targets in chunks)
    return loss, (targets_N != IGNORE_INDEX).sum()


def whole_weight(weight: Tensor) -> Tensor:
    """All rows of a matrix that may be spread over tensor-parallel ranks; differentiable."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
