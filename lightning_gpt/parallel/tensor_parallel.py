"""Tensor parallelism: every matrix of a layer is cut, and the ranks of a group work on the same batch together."""

from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.attention import CausalSelfAttention
from lightning_gpt.nn.feedforward import FeedForward, GatedFeedForward
from lightning_gpt.parallel.group_sums import reduce_gradient
from lightning_gpt.parallel.local_parameters import Locally, local, use_locally, used_by_method
from lightning_gpt.parallel.row_order import deal_rows, dealt_rows
from lightning_gpt.parallel.vocabulary import split_vocabulary


def check_divisible(config: GPTConfig, size: int) -> None:
    """Refuses a network that cannot be cut into `size` equal parts.

    Raises:
        ValueError: names the field, its value and which sizes would do.
    """
    fields = {"n_head": config.n_head, "n_kv_head": config.kv_heads}
    if config.moe is None or not all(map(config.is_mixture, range(config.n_layer))):
        fields["ffn_hidden"] = config.hidden_size
    good = [n for n in range(1, config.n_head + 1) if not any(value % n for value in fields.values())]
    for name, value in fields.items():
        if value % size:
            raise ValueError(
                f"tensor parallelism over {size} devices does not divide model.config.{name}={value}: use one of "
                f"{', '.join(map(str, good))}, or another {name}"
            )


def tensor_parallel(net: GPT, mesh: DeviceMesh) -> None:
    """Cuts a network over a mesh (Shoeybi et al., 2019): heads, hidden units of the feed-forwards and the vocabulary.

    A block sums over the ranks twice, after `out` and after `down`, and as often in the backward pass; the stream
    between is whole on every rank, as are norms, position embeddings and experts. Dropout draws alike on all ranks.

    Args:
        net: changed in place; its parameters become DTensors on the mesh.
        mesh: one-dimensional, the ranks of a tensor-parallel group.

    Raises:
        ValueError: the sizes do not divide, or adapters are in the network.
    """
    check_divisible(net.config, mesh.size())
    _refuse_adapters(net)
    for block in net.blocks:
        _split_attention(block.attention, mesh)
        if isinstance(block.feed_forward, FeedForward | GatedFeedForward):
            _split_feed_forward(block.feed_forward, mesh)
        else:  # experts: their layer reaches into their parameters
            replicate(block.feed_forward, mesh, within=block.feed_forward)
    if net.config.position == "alibi":
        net.slopes_H = net.slopes_H.chunk(mesh.size())[mesh.get_local_rank()]
    split_vocabulary(net, mesh)
    replicate(net, mesh)
    if net.config.position == "learned":  # which GPT.hidden reaches into
        used_by_method(net, "hidden", net.position_embedding, "weight")


def _refuse_adapters(net: GPT) -> None:
    for name, module in net.named_modules():
        if hasattr(module, "lora_A"):
            raise ValueError(
                f"model.lora puts adapters into {name}, which tensor parallelism cannot cut: use the strategy "
                "lightning_gpt.parallel.FullySharded or ddp, or model.lora=null"
            )


def _split_attention(attention: CausalSelfAttention, mesh: DeviceMesh) -> None:
    """Every rank has its share of the query heads and the key/value heads that they share."""
    ranks, size = mesh.size(), attention.head_size
    queries, keys = attention.heads * size, attention.kv_heads * size
    deal_rows(attention.qkv, dealt_rows((queries, keys, keys), ranks))
    parallelize_module(attention, mesh, {"qkv": ColwiseParallel(), "out": RowwiseParallel()})
    attention.heads //= ranks
    attention.kv_heads //= ranks
    parts: dict[str, Locally] = {}
    for name, parameter in list(attention.named_parameters(recurse=False)):
        by_head = name == "sinks"
        _distribute(attention, name, parameter, mesh, Shard(0) if by_head else Replicate())
        # Gains and shares of all heads: the gradient of each rank is that of its own heads.
        parts[name] = local if by_head else partial(_shared_by_heads, mesh=mesh)
    if parts:
        use_locally(attention, parts)


def _shared_by_heads(parameter: DTensor, mesh: DeviceMesh) -> torch.Tensor:
    return reduce_gradient(local(parameter), mesh.get_group())


def _split_feed_forward(feed_forward: FeedForward | GatedFeedForward, mesh: DeviceMesh) -> None:
    """Every rank has its share of the hidden units."""
    gated = isinstance(feed_forward, GatedFeedForward)
    if gated:
        hidden = feed_forward.gate_up.out_features // 2
        deal_rows(feed_forward.gate_up, dealt_rows((hidden, hidden), mesh.size()))
    up = "gate_up" if gated else "up"
    parallelize_module(feed_forward, mesh, {up: ColwiseParallel(), "down": RowwiseParallel()})


def replicate(module: nn.Module, mesh: DeviceMesh, within: nn.Module | None = None) -> None:
    """Makes DTensors of the parameters that are none yet: every rank holds all of them and computes alike with them.

    Args:
        module: changed in place.
        mesh: one-dimensional.
        within: while it runs, its parameters are plain; None = each while the module that has it runs.
    """
    for owner in module.modules():
        plain = {
            name: parameter
            for name, parameter in owner.named_parameters(recurse=False)
            if not isinstance(parameter, DTensor)
        }
        for name, parameter in plain.items():
            _distribute(owner, name, parameter, mesh, Replicate())
        if plain:
            use_locally(owner, dict.fromkeys(plain, local), within)


def _distribute(owner: nn.Module, name: str, parameter: nn.Parameter, mesh: DeviceMesh, placement) -> None:
    spread = distribute_tensor(parameter.detach(), mesh, [placement])
    owner.register_parameter(name, nn.Parameter(spread, requires_grad=parameter.requires_grad))
