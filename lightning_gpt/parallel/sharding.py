"""Fully sharded training (FSDP2), applied to the network from outside: the network knows nothing of devices."""

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from lightning_gpt.nn import GPT
from lightning_gpt.parallel.sharded_states import ShardedStates


def shard_network(net: GPT, mesh: DeviceMesh) -> None:
    """Spreads every block's weights, then what is left of the network, over the mesh (Zhao et al., 2023).

    Weights are gathered block by block while they are needed; gradients and optimizer states stay sharded.

    Args:
        net: changed in place; its parameters become DTensors.
        mesh: one-dimensional, the data-parallel ranks.
    """
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    # Training and validation call these, which must gather as forward does.
    for method in ("loss", "answer_loss", "hidden"):
        register_fsdp_forward_method(net, method)


class FullySharded(ShardedStates, ModelParallelStrategy):
    """Data-parallel over all devices with everything sharded.

    Args:
        sharded_checkpoints: every process writes its part, into a directory; false = rank 0 gathers and writes a whole
            file. Either can be continued, exported and generated from under any strategy on any number of devices.
    """

    def __init__(self, sharded_checkpoints: bool = False) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=sharded_checkpoints)

    def setup_environment(self) -> None:
        """Takes every device: Lightning's "auto" means the number of nodes and refuses several devices."""
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()
