"""What the experts of a network had to do: counted by the step for the balance bias, by the window for the log."""

import math

import torch
from torch import Tensor, nn

from lightning_gpt.nn.moe import mixtures


class ExpertLoads:
    """Counts of every layer with experts. Legend: L' such layers, E experts.

    Args:
        network: a GPT with a mixture of experts.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers = mixtures(network)
        self._step_LE: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Begins a new window."""
        self._passes = 0
        self._window_LE: Tensor | float = 0.0
        self._dropped_L: Tensor | float = 0.0
        self._entropy_L: Tensor | float = 0.0

    def state_dict(self) -> dict[str, int | Tensor]:
        """The window so far, for a checkpoint."""
        sums = (self._window_LE, self._dropped_L, self._entropy_L)
        return {"passes": self._passes, "sums": [torch.as_tensor(value).cpu() for value in sums]}

    def load_state_dict(self, state: dict[str, int | Tensor]) -> None:
        """Goes on with the window of a checkpoint."""
        device = next(self.layers[0][1].parameters()).device
        self._passes = state["passes"]
        self._window_LE, self._dropped_L, self._entropy_L = (value.to(device) for value in state["sums"])

    def add(self) -> None:
        """Books the forward pass that has just been made."""
        reports = [mixture.report for _, mixture in self.layers]
        load_LE = torch.stack([report.load_E for report in reports]).float()
        self._step_LE = load_LE if self._step_LE is None else self._step_LE + load_LE
        self._window_LE = self._window_LE + load_LE
        self._dropped_L = self._dropped_L + torch.stack([report.dropped for report in reports])
        self._entropy_L = self._entropy_L + torch.stack([report.entropy for report in reports])
        self._passes += 1

    def end_step(self, world_size: int) -> None:
        """Once per optimizer step: moves the balance biases by the step's load over all micro-batches and ranks."""
        load_LE, self._step_LE = self._step_LE, None
        if load_LE is None:
            return
        if world_size > 1:
            torch.distributed.all_reduce(load_LE)
        for (_, mixture), load_E in zip(self.layers, load_LE):
            mixture.router.follow_load(load_E)

    def window(self, world_size: int) -> tuple[dict[str, float], Tensor]:
        """Metrics of all ranks since the last reset and the share of each expert (L', E).

        experts/<layer>/max_violation: largest load over the mean, minus 1 (Wang et al., 2024; 0 = even, E / K - 1 =
        collapsed); min_load: smallest load over the mean; dropped: share of pairs; entropy: of the router, over ln E.
        experts/<name> is the mean over the layers.
        """
        sums = torch.cat([self._window_LE, self._dropped_L[:, None], self._entropy_L[:, None]], dim=1)
        if world_size > 1:
            torch.distributed.all_reduce(sums)
        load_LE, dropped_L, entropy_L = sums[:, :-2], sums[:, -2], sums[:, -1]
        passes = self._passes * world_size
        share_LE = load_LE / load_LE.sum(-1, keepdim=True).clamp(min=1)
        E = load_LE.shape[-1]
        metrics = {}
        for row, (layer, _) in enumerate(self.layers):
            values = {
                "max_violation": E * share_LE[row].max().item() - 1,
                "min_load": E * share_LE[row].min().item(),
                "dropped": dropped_L[row].item() / passes,
                "entropy": entropy_L[row].item() / passes / math.log(max(E, 2)),
            }
            metrics |= {f"experts/{layer}/{name}": value for name, value in values.items()}
            for name, value in values.items():
                metrics[f"experts/{name}"] = metrics.get(f"experts/{name}", 0.0) + value / len(self.layers)
        return metrics, share_LE.cpu()
