"""Learning from rewards of drawn answers: one Lightning batch of prompts is one iteration of draw, score, update.

Legend: N answers of this rank in an iteration, T tokens. Everything about a token stands at the position that predicts
it, as targets do: (N, T), 0 where no answer's token is predicted.
"""

import math
import os
import time
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_gpt.hub.adapters import LoRA
from lightning_gpt.inference import SamplingConfig
from lightning_gpt.nn.loss import IGNORE_INDEX
from lightning_gpt.optim import AdamW, Linear, OptimizerSpec, ScheduleSpec
from lightning_gpt.parallel.strategies import Spreading
from lightning_gpt.rewards.protocol import Reward, checked
from lightning_gpt.tasks.base import NonFiniteError
from lightning_gpt.tasks.referenced import Referenced, answer_log_probs
from lightning_gpt.tasks.rollout import Answers, draw_answers, fresh_casts

Experience = dict[str, Tensor]
"""Of an iteration's answers, first dimension N: input_ids, targets, scores, log_probs, reference_log_probs, ..."""
NEGATIVE_KL = -1.0
"""Nats an answer: below it, what is drawn does not follow the policy that is scored."""


class Reinforcement(Referenced):
    """Base of PPO, GRPO, RLOO and online DPO.

    Logs objective/kl, objective/entropy, objective/scores, completions/mean_length, completions/clipped_ratio,
    val/num_eos_tokens and speed/generation_share, how much of an iteration's time went into drawing.

    Optimization is manual: an iteration makes `epochs` passes over its answers in `minibatches` optimizer steps each.
    Losses are means over the tokens (or answers) of a minibatch over all ranks.

    Args:
        init_from: the policy to start from, which is the reference too; best an SFT model that ends its answers.
        reward: scores an answer (lightning_gpt.rewards).
        max_new_tokens: longest answer.
        epochs: passes over an iteration's answers.
        minibatches: optimizer steps of a pass.
        micro_batch_size: answers per forward and backward pass, to save memory; null = a whole minibatch.
        sampling: how answers are drawn. Log-probabilities are taken at the same temperature; filters such as top_k
            make drawn answers differ from the policy and are warned about when they show.
        missing_end_penalty: taken off the score of an answer that did not end within max_new_tokens; null = nothing.
        optimizer, schedule, lora, activation_checkpointing: see FineTuning.
    """

    def __init__(
        self,
        init_from: str,
        reward: Reward,
        max_new_tokens: int = 64,
        epochs: int = 1,
        minibatches: int = 1,
        micro_batch_size: int | None = None,
        sampling: SamplingConfig | None = None,
        missing_end_penalty: float | None = None,
        optimizer: OptimizerSpec | None = None,
        schedule: ScheduleSpec | None = None,
        lora: LoRA | None = None,
        activation_checkpointing: int | float | str = 0,
    ) -> None:
        super().__init__(
            init_from, optimizer or self.default_optimizer(), schedule or Linear(), lora, activation_checkpointing
        )
        self.automatic_optimization = self.one_backward = False
        self.sampling = sampling or SamplingConfig()
        if self.sampling.temperature == 0:
            raise ValueError("model.sampling.temperature=0 draws the same answer every time: use a positive one")
        if self.sampling.repetition_penalty != 1:
            raise ValueError("model.sampling.repetition_penalty changes what is drawn but not what is scored: use 1")
        for name, value in (("max_new_tokens", max_new_tokens), ("epochs", epochs)):
            if value < 1:
                raise ValueError(f"model.{name}={value} must be at least 1")
        for name, value in (("minibatches", minibatches), ("micro_batch_size", micro_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"model.{name}={value} must be at least 1")
        self.reward, self.max_new_tokens = reward, max_new_tokens
        self.answers = 1
        """Drawn for each prompt; algorithms that compare answers set more."""
        self.epochs, self.minibatches, self.micro_batch_size = epochs, minibatches, micro_batch_size
        self.missing_end_penalty = missing_end_penalty
        self.gradient_clip_val: float | None = 1.0
        """Largest gradient norm; trainer.gradient_clip_val, which Lightning leaves to the task here."""
        self.iteration = 0
        self._drawing = 0.0
        self._warned_of_negative_kl = False

    @staticmethod
    def default_optimizer() -> OptimizerSpec:
        """AdamW as published implementations set it for networks of billions; smaller ones take larger rates."""
        return AdamW(lr=1e-6, betas=(0.9, 0.999), weight_decay=0.0)

    def prepare_parallel(self) -> None:
        """Refuses to be spread: ranks draw answers of unequal lengths, and weights are gathered by all at once."""
        if isinstance(self.strategy, Spreading):
            raise ValueError(
                f"trainer.strategy={type(self.strategy).__name__}: {type(self).__name__} draws answers, which a spread "
                "network cannot: use trainer.strategy=ddp"
            )

    # --- what an algorithm is -----------------------------------------------------------------------------------

    @abstractmethod
    def evaluate_answers(self, experience: Experience) -> None:
        """Adds what the updates need, advantages above all; books the metrics of the iteration."""

    @abstractmethod
    def loss(self, part: Experience, count: Tensor) -> Tensor:
        """Sum of the losses of some answers, divided by `count`; books the metrics of the update."""

    def count(self, minibatch: Experience) -> Tensor:
        """What the loss is a mean over: tokens, unless an algorithm says otherwise."""
        return (minibatch["targets"] != IGNORE_INDEX).sum()

    def stop_updates(self) -> bool:
        """Whether the iteration's remaining updates are left out."""
        return False

    # --- one iteration ------------------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        """What the context leaves to a prompt."""
        left = super().context - self.max_new_tokens
        if left < 1:
            raise ValueError(
                f"model.max_new_tokens={self.max_new_tokens} leaves no room for a prompt in the context of "
                f"{super().context} tokens: lower it"
            )
        return left

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Draws answers to the prompts, scores them, updates."""
        began = time.perf_counter()
        experience = self.collect(batch)
        self.evaluate_answers(experience)
        self.iteration += 1
        for minibatch in self.deal(experience):
            self.update(minibatch)
            if self.stop_updates() or self.trainer.global_step >= self.trainer.max_steps:
                break
        self.book("speed/generation_share", self._drawing, time.perf_counter() - began)

    def collect(self, batch: dict[str, Any]) -> Experience:
        """Answers to every prompt with scores and both log-probabilities."""
        prompts = [ids for ids in batch["prompts"] for _ in range(self.answers)]
        texts = [text for text in batch["texts"] for _ in range(self.answers)]
        columns = {name: [v for v in values for _ in range(self.answers)] for name, values in batch["columns"].items()}
        began = time.perf_counter()
        drawn = self.draw(prompts, self.sampling, self._seeds(len(batch["prompts"])))
        self._drawing = time.perf_counter() - began
        scores = torch.tensor(checked(self.reward, texts, drawn.texts, columns), device=self.device)
        if self.missing_end_penalty is not None:
            scores = torch.where(drawn.ended, scores, scores - self.missing_end_penalty)
        experience = {
            "input_ids": drawn.input_ids,
            "targets": drawn.targets,
            "scores": scores,
            "ended": drawn.ended,
            **self.score_tokens(drawn),
        }
        tokens = drawn.lengths.sum() + sum(map(len, prompts))
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(tokens)
        self.tokens_seen += int(tokens)
        kl_N = (experience["log_probs"] - experience["reference_log_probs"]).sum(-1)
        self.book("objective/kl", kl_N.sum(), len(kl_N))
        self.book("objective/entropy", experience["entropy"].sum(), len(kl_N))
        self.book("objective/scores", scores.sum(), len(scores))
        self.book("completions/mean_length", drawn.lengths.sum(), len(kl_N))
        self.book("completions/clipped_ratio", (~drawn.ended).sum(), len(kl_N))
        self.book("val/num_eos_tokens", drawn.ended.sum(), 1 / self.trainer.world_size)
        self._warn_of_negative_kl(kl_N.mean().item())
        return experience

    def draw(self, prompts: list[list[int]], sampling: SamplingConfig, seeds: list[int]) -> Answers:
        """Answers of the policy as it is."""
        ends = self.trainer.datamodule.encoder.template.end_ids
        return draw_answers(self.net, self.tokenizer, prompts, self.max_new_tokens, sampling, seeds, ends)

    def _seeds(self, prompts: int) -> list[int]:
        """Of this rank's answers: no two of a run share one, and they are the same however many ranks draw them."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        first = 1_000_003 * int(os.environ.get("PL_GLOBAL_SEED", "0")) + self.iteration * prompts * world * self.answers
        numbers = (row * world + rank for row in range(prompts))  # as samples are dealt out to ranks
        return [first + number * self.answers + answer for number in numbers for answer in range(self.answers)]

    @torch.no_grad()
    def score_tokens(self, drawn: Answers) -> Experience:
        """log_probs and entropy of the policy, reference_log_probs, (N, T); PPO adds values."""
        parts = []
        for rows in self.micro_batches(len(drawn.texts)):
            ids, targets = drawn.input_ids[rows], drawn.targets[rows]
            with fresh_casts():
                parts.append(self.forward_tokens(ids, targets))
                parts[-1]["reference_log_probs"] = self.reference_log_probs(ids, targets, self.sampling.temperature)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def forward_tokens(self, input_ids: Tensor, targets: Tensor) -> Experience:
        """log_probs and entropy (N, T) of the policy: the same pass, in type and masks, before and in the updates."""
        log_probs, entropy = answer_log_probs(self.net, input_ids, targets, self.sampling.temperature)
        return {"log_probs": log_probs, "entropy": entropy}

    def micro_batches(self, rows: int) -> Iterator[slice]:
        """Slices of at most micro_batch_size rows."""
        size = self.micro_batch_size or max(-(-rows // self.minibatches), 1)
        return (slice(start, start + size) for start in range(0, rows, size))

    def deal(self, experience: Experience) -> Iterator[Experience]:
        """The minibatches of all epochs, in a new order each epoch."""
        rows = len(experience["targets"])
        if rows % self.minibatches:
            raise ValueError(
                f"model.minibatches={self.minibatches} does not divide the {rows} answers of an iteration "
                "(data.batch_size x model.answers)"
            )
        for _ in range(self.epochs):
            order = torch.randperm(rows).to(self.device)
            for chosen in order.split(rows // self.minibatches):
                yield {name: values[chosen] for name, values in experience.items()}

    def update(self, minibatch: Experience) -> None:
        """One optimizer step.

        Raises:
            NonFiniteError: the loss or the gradient is not finite; the weights are as they were.
        """
        optimizer, world = self.optimizers(), self.trainer.world_size
        count = self.count(minibatch).float()
        if world > 1:
            torch.distributed.all_reduce(count)
        optimizer.zero_grad()
        total = 0.0
        for rows in self.micro_batches(len(minibatch["targets"])):
            loss = self.loss({name: values[rows] for name, values in minibatch.items()}, count)
            value = loss.item()
            if not math.isfinite(value):
                loss = loss * math.nan  # so are its gradients then, on all ranks: none leaves alone
            self.manual_backward(loss * world)  # gradients are averaged over ranks, the count is already global
            total += value
        self.learning_rate = optimizer.param_groups[0]["lr"]
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip_val or math.inf)
        self.gradient_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.window_loss, self.window_tokens = self.window_loss + total * world, self.window_tokens + 1
        if not math.isfinite(self.gradient_norm.item()):
            step = self.trainer.global_step + 1
            raise NonFiniteError(f"the loss is {total} and the gradient norm {float(norm)} in optimizer step {step}")
        optimizer.step()
        self.lr_schedulers().step()

    def _warn_of_negative_kl(self, kl: float) -> None:
        if kl < NEGATIVE_KL and not self._warned_of_negative_kl:
            self._warned_of_negative_kl = True
            filters = {"top_k": self.sampling.top_k, "top_p": self.sampling.top_p, "min_p": self.sampling.min_p}
            used = [f"{name}={value}" for name, value in filters.items() if value is not None]
            why = (
                f"{' and '.join(used)} keep out tokens that the policy would draw: leave them out while training"
                if used
                else "drawn answers do not follow the policy that is scored: is dropout on, or the network not causal?"
            )
            rank_zero_warn(f"the KL divergence from the reference is {kl:.2f} nats an answer, below zero: {why}")

    # --- validation ---------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Draws one likeliest answer a prompt: val/score, val/kl, val/mean_length, val/ended."""
        if not batch["prompts"]:
            return
        drawn = self.draw(batch["prompts"], SamplingConfig(temperature=0), [0] * len(batch["prompts"]))
        scores = torch.tensor(checked(self.reward, batch["texts"], drawn.texts, batch["columns"]))
        with torch.no_grad(), fresh_casts():
            policy = answer_log_probs(self.net, drawn.input_ids, drawn.targets)[0].sum()
            reference = self.reference_log_probs(drawn.input_ids, drawn.targets).sum()
        self.add("score", scores.sum(), len(scores))
        self.add("kl", policy - reference, len(scores))
        self.add("mean_length", drawn.lengths.sum(), len(scores))
        self.add("ended", drawn.ended.sum(), len(scores))

    # --- checkpoints --------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the number of iterations, by which answers are seeded."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lightning_gpt"]["iteration"] = self.iteration

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores it."""
        super().on_load_checkpoint(checkpoint)
        self.iteration = checkpoint["lightning_gpt"]["iteration"]

    @property
    def training_flops_per_token(self) -> float:
        """Of the updates: `epochs` passes over every token."""
        return super().training_flops_per_token * self.epochs
