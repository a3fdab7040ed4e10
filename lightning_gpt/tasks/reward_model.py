"""Reward model: which of two answers people prefer, as one number an answer."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.hub.reward_directory import RewardScale
from lightning_gpt.objectives.reward import pairwise_loss
from lightning_gpt.tasks.scoring import Scoring, score_at, whole_rows


class RewardModel(Scoring):
    """Learns rewards from PreferenceData by the Bradley-Terry likelihood (Stiennon et al., 2020; Ouyang et al., 2022).

    The reward is a linear function of the last token's state. Logs train/accuracy, train/margin, train/mean_reward,
    min_reward and max_reward; val/ the same, val/loss and, where the rows carry the probability that their label
    is right, val/accuracy_ceiling: what a perfect judge would reach. calibration.png of the run shows whether the model
    is as sure as it should be.

    Args:
        init_from: see FineTuning, as are optimizer, schedule, lora and activation_checkpointing; best the SFT model.
        centering: weight of (r_chosen + r_rejected)^2, which keeps rewards near zero; 0 = off.
    """

    def __init__(self, init_from: str, centering: float = 0.01, **kwargs: Any) -> None:
        super().__init__(init_from, **kwargs)
        if centering < 0:
            raise ValueError(f"model.centering={centering} must be 0 (off) or positive")
        self.save_hyperparameters(ignore=["optimizer", "schedule"])
        self.centering = centering
        self._scale = RewardScale()
        self._differences: list[Tensor] = []

    @property
    def scale(self) -> RewardScale:
        """Mean and deviation of the last validation's rewards, and whether answers stand in conversations."""
        return replace(self._scale, chat=self.trainer.datamodule.conversational)

    def rewards(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Of the chosen and the rejected answers, (B,) each."""
        ids, last = whole_rows(batch["input_ids"], batch["targets"])
        return score_at(self.net, self.head, ids, last).chunk(2)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of one micro-batch of pairs."""
        chosen, rejected = self.rewards(batch)
        losses = pairwise_loss(chosen, rejected, batch.get("margins"), self.centering)
        self.see(int(batch["num_tokens"]))
        for name, values in self._metrics(chosen.detach(), rejected.detach()).items():
            self.book(f"train/{name}", values.sum(), len(values))
        return self.mean_loss(losses.sum(), torch.tensor(len(losses)))

    def _metrics(self, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
        """Metrics under the names users know, one value a pair."""
        both = torch.stack((chosen, rejected))
        right = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
        return {
            "accuracy": right,
            "margin": chosen - rejected,
            "mean_reward": both.mean(0),
            "min_reward": both.amin()[None],
            "max_reward": both.amax()[None],
        }

    def on_validation_epoch_start(self) -> None:
        """Forgets the last pass."""
        super().on_validation_epoch_start()
        self._differences = []

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Adds one batch."""
        if not len(batch["index"]):
            self.keep_pace(batch)
            return
        chosen, rejected = self.rewards(batch)
        losses = pairwise_loss(chosen, rejected, batch.get("margins"))
        self.add("loss", losses.sum(), len(losses))
        for name, values in self._metrics(chosen, rejected).items():
            self.add(name, values.sum(), len(values))
        if "probabilities" in batch:  # no judge can be right more often about labels drawn with these
            sure = torch.maximum(batch["probabilities"], 1 - batch["probabilities"])
            self.add("accuracy_ceiling", sure.sum(), len(sure))
        both = torch.cat((chosen, rejected)).double()
        self.add("squared_reward", both.square().sum(), len(both))
        self._differences.append((chosen - rejected).float().cpu())

    def evaluated(self) -> dict[str, float]:
        """Also keeps mean and deviation, by which rewards are put on one scale."""
        metrics = super().evaluated()
        if not metrics:
            return {}
        square = metrics.pop("squared_reward")
        deviation = math.sqrt(max(square - metrics["mean_reward"] ** 2, 1e-12))
        self._scale = RewardScale("outcome", metrics["mean_reward"], deviation)
        return metrics

    @property
    def validation_differences(self) -> Tensor:
        """Reward of the chosen minus that of the rejected answer, for this rank's pairs of the last validation."""
        return torch.cat(self._differences) if self._differences else torch.zeros(0)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the scale too."""
        super().on_load_checkpoint(checkpoint)
        self._scale = RewardScale(**checkpoint["lightning_gpt"]["reward"])
