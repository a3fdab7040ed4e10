"""Learning from pairs of answers without a reward model: DPO and its relatives."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.objectives.log_probs import sequence_log_probs
from lightning_gpt.objectives.preference import PairLogProbs, PreferenceLoss, Sigmoid
from lightning_gpt.tasks.reference_file import ReferenceFile
from lightning_gpt.tasks.referenced import Referenced, answer_log_probs


class DPO(Referenced):
    """Direct preference optimisation (Rafailov et al., 2023) on PreferenceData; other losses by class_path.

    Both answers go through the network in one pass. Logs rewards/chosen, rewards/rejected, rewards/margins,
    rewards/accuracies, logps/chosen, logps/rejected (val/ before them in validation). That rewards/chosen falls is
    normal: the margin matters.

    Args:
        init_from: see FineTuning, as are optimizer, schedule, lora and activation_checkpointing; best the SFT model,
            which is the reference too.
        loss: what is descended (lightning_gpt.objectives.preference: Sigmoid, Robust, Hinge, IPO, SimPO, ORPO, ...).
        sft_weight: adds so much of the chosen answers' loss per token (RPO, Pang et al., 2024); 0 = none.
        reference_file: a file that keeps the reference's log-probabilities; they are computed once, before the
            training, and no second network is held. It is refused when it is of other data or another model. null =
            compute them in every step.
    """

    def __init__(
        self,
        init_from: str,
        loss: PreferenceLoss | None = None,
        sft_weight: float = 0.0,
        reference_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_from, **kwargs)
        if sft_weight < 0:
            raise ValueError(f"model.sft_weight={sft_weight} must be 0 (none) or positive")
        self.save_hyperparameters(ignore=["optimizer", "schedule", "loss"])
        self.loss = loss or Sigmoid()
        self.sft_weight = sft_weight
        if reference_file is not None and not self.loss.needs_reference:
            raise ValueError(f"model.reference_file is set, but {type(self.loss).__name__} has no reference: drop it")
        self.reference_file = None if reference_file is None else ReferenceFile(Path(reference_file))
        self.keeps_reference = self.loss.needs_reference and reference_file is None

    @property
    def nominal_tokens(self) -> int:
        """Pairs of a full micro-batch: the loss is a mean over pairs."""
        return self.trainer.datamodule.batch_size

    def on_fit_start(self) -> None:
        """Reads or computes the reference's log-probabilities."""
        if self.reference_file is not None:
            self.reference_file.prepare(self)

    def pair_log_probs(self, batch: dict[str, Tensor], split: str) -> tuple[PairLogProbs, Tensor]:
        """Of a batch of pairs, and the chosen answers' log-probabilities per token summed up (for sft_weight)."""
        ids, targets = batch["input_ids"], batch["targets"]
        log_probs = answer_log_probs(self.net, ids, targets)[0]
        policy = sequence_log_probs(log_probs, targets, self.loss.averages)
        chosen, rejected = policy.chunk(2)
        margins = batch.get("margins")
        per_token = log_probs.chunk(2)[0].sum() / (targets.chunk(2)[0] != -100).sum().clamp(min=1)
        if not self.loss.needs_reference:
            return PairLogProbs(chosen, rejected, margins=margins), per_token
        if self.reference_file is not None:
            reference = self.reference_file.look_up(split, batch["index"], self.loss.averages).to(chosen.device)
        else:
            reference = sequence_log_probs(self.reference_log_probs(ids, targets), targets, self.loss.averages)
        return PairLogProbs(chosen, rejected, *reference.chunk(2), margins), per_token

    def metrics(self, pair: PairLogProbs) -> dict[str, Tensor]:
        """Under the names users know, (B,) each."""
        chosen, rejected = self.loss.rewards(pair)
        return {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "logps/chosen": pair.chosen.detach(),
            "logps/rejected": pair.rejected.detach(),
        }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of one micro-batch of pairs."""
        pair, chosen_per_token = self.pair_log_probs(batch, "train")
        losses = self.loss(pair)
        self.see(int(batch["num_tokens"]))
        for name, values in self.metrics(pair).items():
            self.book(name, values.sum(), len(values))
        total = losses.sum() - self.sft_weight * chosen_per_token * len(losses)
        return self.mean_loss(total, torch.tensor(len(losses)))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Adds one batch."""
        if not len(batch["index"]):
            self.keep_pace(batch)
            return
        pair, _ = self.pair_log_probs(batch, "val")
        losses = self.loss(pair)
        self.add("loss", losses.sum(), len(losses))
        for name, values in self.metrics(pair).items():
            self.add(name, values.sum(), len(values))

    def on_validation_start(self) -> None:
        """For `validate` alone too."""
        if self.reference_file is not None and self.trainer.state.fn != "fit":
            self.reference_file.prepare(self)
