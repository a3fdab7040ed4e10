"""Supervised fine-tuning: a language model learns to answer."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gpt.nn import GPT
from lightning_gpt.nn.loss import IGNORE_INDEX, answered
from lightning_gpt.objectives.log_probs import entropy
from lightning_gpt.parallel.apply import compile_blocks
from lightning_gpt.tasks.finetuning import FineTuning


class SFT(FineTuning):
    """Next-token prediction on the answers (or all tokens) of InstructionData.

    Logs beside the loss: train/mean_token_accuracy and train/entropy (of the steps that are logged), train/num_tokens
    (real ones, mean of a micro-batch).

    Args:
        init_from: see FineTuning, as are optimizer, schedule, lora and activation_checkpointing.
        neftune_alpha: noise uniform in ±alpha / sqrt(T C) on the embeddings while training (NEFTune, Jain et al.,
            2023: 5 to 15); 0 = none.
        compile: compile the network's blocks with torch.compile: a slow first step, faster ones after.
    """

    models_language = True

    def __init__(self, init_from: str, neftune_alpha: float = 0.0, compile: bool = False, **kwargs: Any) -> None:
        super().__init__(init_from, **kwargs)
        if neftune_alpha < 0:
            raise ValueError(f"model.neftune_alpha={neftune_alpha} must be 0 (no noise) or positive")
        self.save_hyperparameters(ignore=["optimizer", "schedule"])
        self.neftune_alpha, self.compile_blocks = neftune_alpha, compile

    def configure_model(self) -> None:
        """Adds the noise."""
        if hasattr(self, "net"):
            return
        super().configure_model()
        if self.neftune_alpha:
            self.net.token_embedding.register_forward_hook(noisy_embeddings(self.neftune_alpha))

    def prepare_parallel(self) -> None:
        """Compiles."""
        if self.compile_blocks:
            compile_blocks(self.net, self.strategy)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one micro-batch: input_ids and targets (B, T)."""
        loss_sum, count = self.net.answer_loss(batch["input_ids"], batch["targets"], batch.get("document_ids"))
        tokens = int(batch["num_tokens"])
        self.see(tokens)
        self.book("train/num_tokens", tokens)
        if self.about_to_log:
            for name, (total, number) in token_metrics(self.net, batch).items():
                self.book(f"train/{name}", total, number)
        return self.mean_loss(loss_sum, count)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Adds one batch: val/loss, val/perplexity, val/mean_token_accuracy, val/entropy."""
        loss_sum, count = self.net.answer_loss(batch["input_ids"], batch["targets"], batch.get("document_ids"))
        self.add("loss", loss_sum, count)
        for name, (total, number) in token_metrics(self.net, batch).items():
            self.add(name, total, number)

    def evaluated(self) -> dict[str, float]:
        """With the perplexity."""
        metrics = super().evaluated()
        return metrics | ({"perplexity": math.exp(min(metrics["loss"], 700.0))} if "loss" in metrics else {})


@torch.no_grad()
def token_metrics(net: GPT, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Sum and count of: whether the likeliest token is the target; the entropy of the prediction in nats.

    Args:
        net: in whatever mode it is; the noise of NEFTune is part of a training pass.
        batch: input_ids, targets (B, T).
    """
    hidden_NC = net.hidden(batch["input_ids"], document_ids=batch.get("document_ids")).flatten(0, 1)
    hidden_NC, targets_N = answered(hidden_NC, batch["targets"].flatten())
    has_N = targets_N != IGNORE_INDEX
    right, uncertain = torch.zeros((), device=has_N.device), torch.zeros((), device=has_N.device)
    for hidden, targets, has in zip(hidden_NC.split(1024), targets_N.split(1024), has_N.split(1024)):
        logits = net.logits(hidden)
        right += ((logits.argmax(-1) == targets) & has).sum()
        uncertain += entropy(logits)[has].sum()
    count = has_N.sum()
    return {"mean_token_accuracy": (right, count), "entropy": (uncertain, count)}


def noisy_embeddings(alpha: float) -> Any:
    """A forward hook that adds NEFTune's noise while the embedding is in training mode."""

    def add_noise(module: nn.Module, inputs: tuple[Tensor, ...], embedded_BTC: Tensor) -> Tensor:
        if not module.training or not torch.is_grad_enabled():
            return embedded_BTC
        size = alpha / math.sqrt(embedded_BTC.shape[1] * embedded_BTC.shape[2])
        return embedded_BTC + torch.empty_like(embedded_BTC).uniform_(-size, size)

    return add_noise
