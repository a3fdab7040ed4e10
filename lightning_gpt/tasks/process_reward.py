"""Process reward model: is each step of a solution right?"""

from typing import Any

import torch
from torch import Tensor

from lightning_gpt.hub.reward_directory import RewardScale
from lightning_gpt.nn.loss import IGNORE_INDEX
from lightning_gpt.objectives.process import step_losses
from lightning_gpt.tasks.scoring import Scoring


class ProcessRewardModel(Scoring):
    """Learns from StepData whether a step is right (Lightman et al., 2023), at the last token of the step.

    Logs train/accuracy; val/loss, val/accuracy (share of steps judged rightly) and val/first_error (share of solutions
    whose first wrong step, or its absence, is found).

    Args:
        init_from: see FineTuning, as are optimizer, schedule, lora and activation_checkpointing.
    """

    def __init__(self, init_from: str, **kwargs: Any) -> None:
        super().__init__(init_from, **kwargs)
        self.save_hyperparameters(ignore=["optimizer", "schedule"])

    @property
    def scale(self) -> RewardScale:
        """Logits at the ends of steps, which the data's step_end writes."""
        return RewardScale("process", step_end=self.trainer.datamodule.step_end)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """That the step which ends here is right, (B, T)."""
        return self.head(self.net.hidden(batch["input_ids"]))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss over the steps of one micro-batch."""
        logits, labels = self.logits(batch), batch["targets"]
        has = labels != IGNORE_INDEX
        self.see(int(batch["num_tokens"]))
        self.book("train/accuracy", ((logits > 0) == (labels > 0))[has].float().sum(), has.sum())
        return self.mean_loss(step_losses(logits, labels).sum(), has.sum())

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Adds one batch."""
        logits, labels = self.logits(batch), batch["targets"]
        has = labels != IGNORE_INDEX
        self.add("loss", step_losses(logits, labels).sum(), has.sum())
        self.add("accuracy", ((logits > 0) == (labels > 0))[has].float().sum(), has.sum())
        places = torch.arange(labels.shape[1], device=labels.device)
        wrong = torch.where(has & (labels == 0), places, labels.shape[1]).amin(-1)
        found = torch.where(has & (logits <= 0), places, labels.shape[1]).amin(-1)
        rows = has.any(-1)
        self.add("first_error", (wrong == found)[rows].float().sum(), rows.sum())
