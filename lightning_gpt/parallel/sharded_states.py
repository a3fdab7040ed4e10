"""What a strategy whose weights are DTensors needs so that its checkpoints are everybody's: written by any number of
processes under any strategy, read by any other.

A checkpoint's dictionary has one shape. `state_dict` is by name; an entry of `optimizer_states` is as
torch.optim.Optimizer.state_dict gives it, parameters by number: every strategy builds the same groups over the same
names in the same order. Only the tensors differ: whole ones, or DTensors of which each rank holds its part.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer


class ShardedStates:
    """Mixin before Lightning's ModelParallelStrategy; needs callbacks.AtomicCheckpointIO as the Trainer's plugin.

    With `save_distributed_checkpoint` every rank writes its part; without, rank 0 writes a whole file, for which
    tensors are gathered one at a time into its CPU memory: it holds one whole copy, the other ranks none.
    """

    _save_distributed_checkpoint: bool

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimizers are restored after the hooks have judged the checkpoint, as without sharding."""
        return True

    @torch.no_grad()
    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """By name: DTensors if sharded, else whole on rank 0 and nothing elsewhere."""
        state = self.model.state_dict(keep_vars=True)
        if self._save_distributed_checkpoint:
            return {name: detached(value) for name, value in state.items()}
        return gathered(state, self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """By number: DTensors if sharded, else whole on rank 0 and nothing elsewhere."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)  # out of Lightning's wrapper
        state = optimizer.state_dict()
        state["state"] = {number: dict(values) for number, values in state["state"].items()}  # no view of the live ones
        if self._save_distributed_checkpoint:
            return state
        numbers = {n: gathered(values, self.is_global_zero) for n, values in state["state"].items()}
        return {**state, "state": numbers} if self.is_global_zero else {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: dict[str, Any] | None = None
    ) -> None:
        """Every rank calls, with what lightning_module_state_dict and optimizer_state gave it."""
        path = self.broadcast(filepath)
        io = self._own_io()
        if self._save_distributed_checkpoint:
            io.save_checkpoint(checkpoint, path, {**(storage_options or {}), "sharded": True})
        elif self.is_global_zero:
            io.save_checkpoint(checkpoint, path, {**(storage_options or {}), "owned": True})

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """The dictionary with its tensors still on disk: each rank reads its own parts, later."""
        path = self.broadcast(checkpoint_path)
        return self._own_io().load_checkpoint(path, weights_only=weights_only, lazily=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Fills this rank's parts of weights and buffers.

        Raises:
            ValueError: names or shapes differ.
        """
        targets, source = self.model.state_dict(), checkpoint["state_dict"]
        missing, extra = sorted(targets.keys() - source.keys()), sorted(source.keys() - targets.keys())
        for what, names in (("lacks", missing), ("has unexpected", extra)):
            if names and strict:
                raise ValueError(f"the checkpoint {what} weight(s) {', '.join(names[:4])}")
        common = {name: detached(target) for name, target in targets.items() if name in source}
        with torch.no_grad():
            fill(common, source)
        self.model.load_state_dict(common, strict=False)  # where a module saves otherwise than it holds

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Gives each optimizer its states, cut as their parameters are."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = numbered(optimizer.param_groups)
            if len(numbered(saved["param_groups"])) != len(parameters):
                raise ValueError(
                    f"the checkpoint's optimizer has {len(numbered(saved['param_groups']))} parameters, this one "
                    f"{len(parameters)}: another network, or other weights learn"
                )
            numbers = numbered(saved["param_groups"])
            state = {n: cut_like(saved["state"][n], p) for n, p in zip(numbers, parameters) if n in saved["state"]}
            optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})

    def _own_io(self) -> Any:
        io = self.checkpoint_io
        if not hasattr(io, "wait"):
            raise ValueError(
                f"trainer.plugins: {type(io).__name__} cannot write checkpoints of {type(self).__name__}: give the "
                "Trainer lightning_gpt.callbacks.AtomicCheckpointIO, as `lightning-gpt fit` does"
            )
        return io


def detached(value: Any) -> Any:
    """Without gradients; not every value of a state is a tensor."""
    return value.detach() if isinstance(value, Tensor) else value


def numbered(groups: Iterable[dict[str, Any]]) -> list[Any]:
    """Parameters of all groups in order."""
    return [parameter for group in groups for parameter in group["params"]]


def gathered(state: Mapping[Any, Any], keep: bool) -> dict[Any, Any]:
    """Whole CPU copies of a state's tensors where `keep`, nothing elsewhere; every rank calls. Values that are one
    and the same (tied weights) are one afterwards."""
    whole: dict[Any, Any] = {}
    done: dict[int, Any] = {}
    for name, value in state.items():
        if id(value) not in done:
            done[id(value)] = _gathered(value, keep)
        if keep:
            whole[name] = done[id(value)]
    return whole


def _gathered(value: Any, keep: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    full = value.full_tensor() if isinstance(value, DTensor) else value
    if not keep:
        return None
    local = value.to_local() if isinstance(value, DTensor) else value
    ours = full.device.type == "cpu" and full.untyped_storage().data_ptr() == local.untyped_storage().data_ptr()
    return full.clone() if ours else full.cpu()


def part(whole: Tensor, like: DTensor) -> Tensor:
    """This rank's part of a whole tensor that is to be spread as `like` is; a view."""
    shape, offset = compute_local_shape_and_global_offset(whole.shape, like.device_mesh, like.placements)
    return whole[tuple(slice(start, start + size) for start, size in zip(offset, shape))]


def fill(targets: dict[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copies a checkpoint's tensors into a network's, of DTensors this rank's part.

    Raises:
        ValueError: another shape.
    """
    shape = getattr(source, "shape", lambda name: source[name].shape)
    for name, target in targets.items():
        if isinstance(target, Tensor) and shape(name) != target.shape:
            raise ValueError(f"the checkpoint's {name} has shape {tuple(shape(name))}, here {tuple(target.shape)}")
    if hasattr(source, "read_into"):
        source.read_into({name: target for name, target in targets.items() if isinstance(target, Tensor)})
        return
    for name, target in targets.items():
        if isinstance(target, DTensor):
            target.to_local().copy_(part(source[name], target))
        elif isinstance(target, Tensor):
            target.copy_(source[name])


def cut_like(saved: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """What an optimizer keeps of a parameter, in memory: tensors of its shape are spread as it is, others are whole."""
    shape = getattr(saved, "shape", lambda name: saved[name].shape)
    dtype = getattr(saved, "dtype", lambda name: saved[name].dtype)
    tensors = [key for key in saved if hasattr(saved, "shape") or isinstance(saved[key], Tensor)]
    state: dict[str, Any] = {key: saved[key] for key in saved if key not in tensors}
    for key in tensors:
        if isinstance(parameter, DTensor) and shape(key) == parameter.shape:
            state[key] = torch.zeros_like(parameter.detach(), dtype=dtype(key))
        else:
            state[key] = torch.empty(shape(key), dtype=dtype(key))
    with torch.no_grad():
        fill({key: state[key] for key in tensors}, saved)
    return {**state, **getattr(saved, "others", {})}
