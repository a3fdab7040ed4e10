"""KTO: learning from answers that are wanted or not, without pairs."""

from typing import Any

import torch
from torch import Tensor

from lightning_gpt.objectives.kto import kl_baseline, kto_loss
from lightning_gpt.objectives.log_probs import sequence_log_probs
from lightning_gpt.tasks.referenced import Referenced, answer_log_probs
from lightning_gpt.tasks.rollout import fresh_casts


class KTO(Referenced):
    """Kahneman-Tversky optimisation (Ethayarajh et al., 2024) on LabelledData.

    Logs rewards/chosen, rewards/rejected (means over wanted and unwanted answers), rewards/margins in validation, and
    kl, the estimated divergence that rewards are compared with.

    Args:
        init_from: see FineTuning, as are optimizer, schedule, lora and activation_checkpointing.
        beta: strength of the pull towards the reference.
        desirable_weight: of wanted answers.
        undesirable_weight: of unwanted ones; weights times numbers should be about alike.
    """

    def __init__(
        self,
        init_from: str,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_from, **kwargs)
        for name, value in (
            ("beta", beta),
            ("desirable_weight", desirable_weight),
            ("undesirable_weight", undesirable_weight),
        ):
            if value <= 0:
                raise ValueError(f"model.{name}={value} must be positive")
        self.save_hyperparameters(ignore=["optimizer", "schedule"])
        self.beta, self.weights = beta, (desirable_weight, undesirable_weight)

    @property
    def nominal_tokens(self) -> int:
        """Answers of a full micro-batch: the loss is a mean over answers."""
        return self.trainer.datamodule.batch_size

    def _log_ratios(self, ids: Tensor, targets: Tensor) -> Tensor:
        policy = sequence_log_probs(answer_log_probs(self.net, ids, targets)[0], targets)
        return policy - sequence_log_probs(self.reference_log_probs(ids, targets), targets)

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of each answer, its log-ratio, and the baseline z (a mean over all ranks)."""
        with torch.no_grad(), fresh_casts():
            mismatched = self._log_ratios(batch["mismatched_input_ids"], batch["mismatched_targets"])
        answers = len(batch["labels"])  # none where a rank has no example left: a row stands in for them
        both = torch.stack((mismatched[:answers].double().sum(), mismatched.new_tensor(answers).double()))
        total, count = self.ranks.sum(both) if self.trainer.world_size > 1 else both
        baseline = kl_baseline((total / count.clamp(min=1))[None])
        ratios = self._log_ratios(batch["input_ids"], batch["targets"])[:answers]
        return kto_loss(ratios, batch["labels"], baseline, self.beta, *self.weights), ratios.detach(), baseline

    def _metrics(self, ratios: Tensor, labels: Tensor, baseline: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        rewards, wanted = self.beta * ratios, labels.float()
        return {
            "rewards/chosen": ((rewards * wanted).sum(), wanted.sum()),
            "rewards/rejected": ((rewards * (1 - wanted)).sum(), (1 - wanted).sum()),
            "kl": (baseline * len(labels), torch.tensor(len(labels))),
        }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of one micro-batch."""
        losses, ratios, baseline = self.losses(batch)
        self.see(int(batch["num_tokens"]))
        for name, (total, count) in self._metrics(ratios, batch["labels"], baseline).items():
            self.book(name, total, count)
        return self.mean_loss(losses.sum(), torch.tensor(len(losses)))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Adds one batch."""
        losses, ratios, baseline = self.losses(batch)
        self.add("loss", losses.sum(), len(losses))
        for name, (total, count) in self._metrics(ratios, batch["labels"], baseline).items():
            self.add(name, total, count)

    def evaluated(self) -> dict[str, float]:
        """With the margin between wanted and unwanted answers."""
        metrics = super().evaluated()
        if metrics:
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        return metrics
