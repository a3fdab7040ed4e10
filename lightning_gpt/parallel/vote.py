"""One number that all ranks agree on at the end of every step, for next to nothing."""

import torch
from torch import distributed


class Vote:
    """The highest of what the ranks say, exchanged while they compute.

    `begin` starts an all-reduce of one integer through gloo, on the CPU: no device waits for it, and because it has a
    group of its own it waits for no gradient either. `end` collects it. Both are called by all ranks in the same
    order. It replaces a blocking broadcast in every micro-batch, which on a GPU also waits for the device.

    Raises (in `end`): RuntimeError within milliseconds when another rank's process has ended, also where gradients go
    through NCCL, which would notice only by its timeout.
    """

    def __init__(self) -> None:
        self._group = distributed.new_group(backend="gloo")
        self._ballot = torch.zeros(1, dtype=torch.int64)
        self._pending: distributed.Work | None = None

    def begin(self, mine: int) -> None:
        """Says `mine`; nothing if a vote is under way."""
        if self._pending is None:
            self._ballot[0] = mine
            self._pending = distributed.all_reduce(
                self._ballot, distributed.ReduceOp.MAX, group=self._group, async_op=True
            )

    def end(self, mine: int) -> int:
        """The highest number said; begins a vote with `mine` if none is under way."""
        self.begin(mine)
        self._pending.wait()
        self._pending = None
        return int(self._ballot[0])
