"""Strategies for YAML: what a network that does not fit one device, or a batch that takes too long, is spread by."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_gpt.parallel.expert_parallel import ExpertMeshes, lay_out_experts
from lightning_gpt.parallel.row_order import deal_loaded, saved_order
from lightning_gpt.parallel.sharded_states import ShardedStates


class Spreading(ShardedStates, ModelParallelStrategy):
    """What the strategies here share: the mesh of devices, and checkpoints that any number of devices goes on from.

    Args:
        tensor_parallel: processes that share every layer.
        shard_size: processes that share the weights of one copy; null = all that are left.
        sharded_checkpoints: every process writes its part, into a directory; false = rank 0 gathers and writes a whole
            file.
        timeout: of a collective.
    """

    expert_meshes: ExpertMeshes | None = None
    """Where experts are shared by several ranks."""

    def __init__(
        self,
        tensor_parallel: int = 1,
        shard_size: int | None = None,
        sharded_checkpoints: bool = False,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(save_distributed_checkpoint=sharded_checkpoints, timeout=timeout)
        for name, value in (("tensor_parallel", tensor_parallel), ("shard_size", shard_size)):
            if value is not None and value < 1:
                raise ValueError(f"trainer.strategy.{name}={value} must be at least 1")
        self.tensor_parallel = tensor_parallel
        self.shard_size = shard_size

    @property
    def devices(self) -> int:
        """Processes of all nodes."""
        return self.num_processes * self.num_nodes

    def _configure_launcher(self) -> None:
        """Refuses what cannot be before any process is started."""
        self.check_devices()
        super()._configure_launcher()

    def check_devices(self) -> None:
        """Refuses sizes that do not divide the devices.

        Raises:
            ValueError: names the setting, its value and which would do.
        """
        data, left = divmod(self.devices, self.tensor_parallel)
        if left or not data:
            raise ValueError(
                f"trainer.strategy.tensor_parallel={self.tensor_parallel} does not divide the {self.devices} devices "
                f"(trainer.devices x trainer.num_nodes): use one of {divisors(self.devices)}, or other trainer.devices"
            )
        if self.shard_size is not None and data % self.shard_size:
            raise ValueError(
                f"trainer.strategy.shard_size={self.shard_size} does not divide the {data} data-parallel processes: "
                f"use one of {divisors(data)}, or null for all of them"
            )

    def setup_environment(self) -> None:
        """Joins the processes and lays out the mesh, which the task's configure_model finds."""
        # It advises another order of gathering, which FSDP2 with tensor parallelism does not have.
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        self._setup_distributed()
        shards = self.shard_size or self.devices // self.tensor_parallel
        self._data_parallel_size = self.devices // self.tensor_parallel
        self._tensor_parallel_size = self.tensor_parallel
        self._device_mesh = lay_out(
            self.root_device.type, self._data_parallel_size // shards, shards, self.tensor_parallel
        )
        self.lightning_module._device_mesh = self._device_mesh

    def setup(self, trainer: Trainer) -> None:
        """As Lightning's; refuses a task that has left weights out, which would go ways of their own on every rank."""
        task = self.lightning_module
        if type(task).configure_model is LightningModule.configure_model:  # where networks are spread
            self._refuse("")
        super().setup(trainer)
        for name, parameter in task.named_parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                self._refuse(f" (its {name} stays whole)")

    def _refuse(self, why: str) -> NoReturn:
        raise ValueError(
            f"trainer.strategy={type(self).__name__} cannot spread {type(self.lightning_module).__name__}{why}: use "
            "trainer.strategy=ddp"
        )

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As Lightning's; rows of fused matrices in their usual order."""
        with saved_order(self.lightning_module, getattr(optimizer, "_optimizer", optimizer)):
            return super().optimizer_state(optimizer)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """From files of any number of devices, whose rows are in the usual order."""
        super().load_optimizer_state_dict(checkpoint)
        for optimizer in self.optimizers:
            deal_loaded(self.lightning_module, optimizer)


class FullySharded(Spreading):
    """Data-parallel over all devices with weights, gradients and optimizer states sharded (FSDP2; Zhao et al., 2023).

    Args:
        tensor_parallel: devices that share every layer and work on one batch together (Shoeybi et al., 2019), next to
            each other: within a node. 1 = none. The batch of an optimizer step shrinks by as much.
        expert_parallel: devices that share the experts of every mixture, next to each other: each has its part of
            them, and tokens travel there and back (Lepikhin et al., 2020). 1 = none, every device computes with all
            experts; null = all devices of one copy of the network.
        shard_size: devices that share the weights of one copy of the network; the copies average their gradients
            (hybrid sharding: the devices of a node). null = one copy over all devices.
        reshard_after_forward: free a block's weights after its forward pass and gather them again in the backward
            pass; false keeps them: a third less communication for the memory of all weights.
        sync_while_accumulating: scatter gradients after every micro-batch. false = after the last one only, which
            divides the traffic by accumulate_grad_batches and holds whole gradients meanwhile.
        sharded_checkpoints: every process writes its part, into a directory; false = rank 0 gathers and writes a whole
            file. Either can be continued, exported and generated from under any strategy on any number of devices.
        timeout: of a collective.
    """

    def __init__(
        self,
        tensor_parallel: int = 1,
        expert_parallel: int | None = 1,
        shard_size: int | None = None,
        reshard_after_forward: bool = True,
        sync_while_accumulating: bool = False,
        sharded_checkpoints: bool = False,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(tensor_parallel, shard_size, sharded_checkpoints, timeout)
        if expert_parallel is not None and expert_parallel < 1:
            raise ValueError(f"trainer.strategy.expert_parallel={expert_parallel} must be at least 1")
        self.expert_parallel = expert_parallel
        self.reshard_after_forward = reshard_after_forward
        self.sync_while_accumulating = sync_while_accumulating

    def check_devices(self) -> None:
        """As Spreading, and what experts need."""
        super().check_devices()
        if self.expert_parallel == 1:
            return
        if self.tensor_parallel > 1:
            raise ValueError(
                f"trainer.strategy.expert_parallel={self.expert_parallel} and tensor_parallel={self.tensor_parallel} "
                "do not go together: set one of them to 1"
            )
        shards = self.shard_size or self.devices
        if shards % (self.expert_parallel or shards):
            raise ValueError(
                f"trainer.strategy.expert_parallel={self.expert_parallel} does not divide the {shards} devices of a "
                f"copy of the network: use one of {divisors(shards)}, or null for all of them"
            )

    def setup_environment(self) -> None:
        """Also lays out the experts."""
        super().setup_environment()
        if self.expert_parallel != 1 and self.devices > 1:
            shards = self.shard_size or self.devices
            self.expert_meshes = lay_out_experts(
                self.root_device.type, self.devices // shards, shards, self.expert_parallel or shards
            )

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Within an accumulation: gradients stay where they are."""
        if self.sync_while_accumulating:
            yield
            return
        with gradients_unsynced(self.model):
            yield


class TensorParallel(Spreading):
    """All devices share every layer and work on one batch together (Shoeybi et al., 2019).

    Two sums over the devices a layer and pass: for devices with fast links, within a node. The batch of an optimizer
    step is that of one device. For more devices FullySharded with tensor_parallel.

    Args:
        size: number of devices; null = all of the trainer.
        sharded_checkpoints: see FullySharded.
        timeout: of a collective.
    """

    def __init__(
        self,
        size: int | None = None,
        sharded_checkpoints: bool = False,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(1, None, sharded_checkpoints, timeout)
        if size is not None and size < 1:
            raise ValueError(f"trainer.strategy.size={size} must be at least 1")
        self.size = size

    def check_devices(self) -> None:
        """Takes all devices.

        Raises:
            ValueError: `size` are not all.
        """
        if self.size not in (None, self.devices):
            raise ValueError(
                f"trainer.strategy.size={self.size} leaves trainer.devices={self.devices} no equal part: set "
                f"trainer.devices={self.size}, or use lightning_gpt.parallel.FullySharded with "
                f"tensor_parallel={self.size}"
            )
        self.tensor_parallel = self.devices


@contextmanager
def gradients_unsynced(network: nn.Module) -> Iterator[None]:
    """Backward passes within leave gradients unreduced, whole on every rank; the next one outside reduces their sum."""
    modules = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_requires_gradient_sync(False, recurse=False)
    try:
        yield
    finally:
        for module in modules:
            module.set_requires_gradient_sync(True, recurse=False)


def lay_out(device: str, replicas: int, shards: int, tensor: int) -> DeviceMesh:
    """The mesh of all processes; its tensor-parallel groups are neighbours, its shards next.

    Returns:
        has the dimensions "data_parallel" (also where it is made of "replicas" and "shards") and "tensor_parallel".
    """
    if replicas == 1:
        return init_device_mesh(device, (shards, tensor), mesh_dim_names=("data_parallel", "tensor_parallel"))
    names = ("replicas", "shards", "tensor_parallel")
    mesh = init_device_mesh(device, (replicas, shards, tensor), mesh_dim_names=names)
    mesh["replicas", "shards"]._flatten("data_parallel")
    return mesh


def divisors(number: int) -> str:
    """Of a number, for a message."""
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def spread_over(mesh: DeviceMesh) -> tuple[DeviceMesh, DeviceMesh | None]:
    """What weights are sharded over, and the tensor-parallel ranks, if there are several."""
    names = mesh.mesh_dim_names or ()
    data = mesh["replicas", "shards"] if "replicas" in names else mesh["data_parallel"]
    tensor = mesh["tensor_parallel"]
    return data, tensor if tensor.size() > 1 else None
