"""Which processes have data of their own: all of them, or one of each tensor-parallel group."""

from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed import ProcessGroup


class DataRanks(NamedTuple):
    """This process among those that read different batches."""

    rank: int
    """Tensor-parallel processes of one group have the same: they work on one batch together."""
    size: int
    group: ProcessGroup | None
    """None: all processes."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place; every batch counts once."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor, group=self.group)
        return tensor


def data_ranks(trainer: Trainer) -> DataRanks:
    """Of the trainer's strategy."""
    mesh = getattr(trainer.strategy, "_device_mesh", None)
    if mesh is None:
        return DataRanks(trainer.global_rank, trainer.world_size, None)
    data = mesh["data_parallel"]
    return DataRanks(data.get_local_rank(), data.size(), data.get_group())
