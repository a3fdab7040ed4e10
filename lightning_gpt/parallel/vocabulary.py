"""Embedding and head with their rows, the vocabulary, over tensor-parallel ranks; the loss without gathering logits.

Legend: N tokens, C width, V vocabulary, v the rows of this rank.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup, ReduceOp
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_gpt.nn import GPT
from lightning_gpt.nn.loss import CHUNK_LOGITS, IGNORE_INDEX
from lightning_gpt.parallel.group_sums import reduce_gradient, sum_over


def split_vocabulary(net: GPT, mesh: DeviceMesh) -> None:
    """Gives every rank a run of the vocabulary's rows (Shoeybi et al., 2019, section 3), in place.

    The embedding sums what the ranks found; `logits` are gathered; the loss exchanges three numbers a token.
    """
    embedding, tied = net.token_embedding, net.head.weight is net.token_embedding.weight
    parallelize_module(net.head, mesh, ColwiseParallel(output_layouts=Replicate()))
    if tied:
        embedding.weight = net.head.weight
    else:
        rows = distribute_tensor(embedding.weight.detach(), mesh, [Shard(0)])
        embedding.weight = nn.Parameter(rows, requires_grad=embedding.weight.requires_grad)
    embedding.forward = partial(_embedded, embedding)
    net.cross_entropy = partial(_network_cross_entropy, net)


def first_row(weight_VC: DTensor) -> int:
    """The id that this rank's rows begin with."""
    mesh = weight_VC.device_mesh
    assert weight_VC.placements == (Shard(0),)
    return mesh.get_local_rank() * -(-weight_VC.shape[0] // mesh.size())


def _embedded(embedding: nn.Embedding, ids: Tensor) -> Tensor:
    """In place of nn.Embedding.forward: the gradient of PyTorch's own form has all rows on every rank."""
    weight_VC = embedding.weight
    group, weight_vC = weight_VC.device_mesh.get_group(), weight_VC.to_local()
    if not len(weight_vC):  # more ranks than rows; the gradient is to be empty, not missing
        return sum_over(weight_vC.new_zeros(*ids.shape, weight_VC.shape[1]) + weight_vC.sum(), group)
    rows = ids - first_row(weight_VC)
    mine = (rows >= 0) & (rows < len(weight_vC))
    found = F.embedding(torch.where(mine, rows, 0), weight_vC)
    return sum_over(torch.where(mine[..., None], found, 0.0), group)


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
    mesh, first = weight_VC.device_mesh, first_row(weight_VC)
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
