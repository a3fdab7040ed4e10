"""Fused matrices under tensor parallelism: rows dealt out so that every rank's are whole heads, yet saved as ever.

Queries, keys and values are one matrix (rows: all queries, all keys, all values), gate and up are one. Cut into equal
runs of rows, the first rank would get queries only. So the rows are put in another order before they are cut: for each
rank its queries, keys and values. `state_dict` gives the usual order and `load_state_dict` takes it, and so does the
optimizer's state through `saved_order`: files do not depend on the number of ranks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def dealt_rows(parts: tuple[int, ...], ranks: int) -> Tensor:
    """The order of rows in which every rank's run has its share of every part.

    Args:
        parts: rows of each part, in the order of the fused matrix; each a multiple of `ranks`.
        ranks: how many.

    Returns:
        int64: row i of the dealt matrix is row order[i] of the fused one.
    """
    rows = torch.arange(sum(parts)).split(parts)
    return torch.cat([part.chunk(ranks)[rank] for rank in range(ranks) for part in rows])


def take_rows(tensor: Tensor, order: Tensor) -> Tensor:
    """tensor[order]; of a DTensor, laid out as it was. Every rank must take part."""
    if not isinstance(tensor, DTensor):
        return tensor[order.to(tensor.device)]
    whole = tensor.full_tensor()[order.to(tensor.device)]
    return distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)


def deal_rows(linear: nn.Linear, order: Tensor) -> None:
    """Puts the rows of weight and bias in this order, in place, and the usual one in its state_dict."""
    linear.row_order = order
    inverse = order.argsort()
    with torch.no_grad():
        for parameter in linear.parameters(recurse=False):
            parameter.copy_(parameter[order.to(parameter.device)])

    def save(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
        for name, _ in module.named_parameters(recurse=False):
            state[prefix + name] = take_rows(state[prefix + name], inverse)

    def load(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        for name, _ in module.named_parameters(recurse=False):
            if prefix + name in state:
                state[prefix + name] = take_rows(state[prefix + name], order)

    linear.register_state_dict_post_hook(save)
    linear.register_load_state_dict_pre_hook(load)


def _dealt(network: nn.Module) -> dict[nn.Parameter, Tensor]:
    """The order of every parameter that is not in the usual one."""
    linears = [module for module in network.modules() if hasattr(module, "row_order")]
    return {parameter: linear.row_order for linear in linears for parameter in linear.parameters(recurse=False)}


def _reordered(network: nn.Module, optimizer: Optimizer, invert: bool) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    for parameter, order in _dealt(network).items():
        state = optimizer.state.get(parameter, {})
        for name, value in list(state.items()):
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                yield state, name, take_rows(value, order.argsort() if invert else order)


@contextmanager
def saved_order(network: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """While it lasts, the optimizer's states have the rows of files."""
    before = []
    for state, name, value in _reordered(network, optimizer, invert=True):
        before.append((state, name, state[name]))
        state[name] = value
    try:
        yield
    finally:
        for state, name, value in before:
            state[name] = value


def deal_loaded(network: nn.Module, optimizer: Optimizer) -> None:
    """After the optimizer's states have been loaded from a file: their rows in the order of the parameters'."""
    for state, name, value in _reordered(network, optimizer, invert=False):
        state[name] = value
