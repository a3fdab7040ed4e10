"""Pretraining: next-token prediction on a stream of tokens."""

import math
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from lightning_gpt.hub.checkpoint import about_tokenizer
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.flops import training_flops_per_token
from lightning_gpt.nn.loss import IGNORE_INDEX
from lightning_gpt.optim import AdamW, Cosine, OptimizerSpec, ScheduleSpec
from lightning_gpt.parallel.apply import balance_experts, compile_blocks, may_compile_loss, parallelize
from lightning_gpt.parallel.recompute import Recompute, recompute
from lightning_gpt.tasks.base import CHECKPOINT_KEY, Task
from lightning_gpt.tasks.expert_loads import ExpertLoads
from lightning_gpt.text.tokenizer import Tokenizer


class Pretraining(Task):
    """Trains a GPT on next-token prediction (Radford et al., 2019) over the batches of TokenData.

    Args:
        config: the network. vocab_size and block_size are taken from the data.
        optimizer: what updates the weights.
        schedule: factor on the learning rates by optimizer step.
        compile: compile the loss with torch.compile: a slow first step, faster ones after. Under FullySharded each
            block is compiled.
        activation_checkpointing: what is recomputed in the backward pass to save memory: 0 = nothing; n = every n-th
            block; full, selective, attention, feed_forward; a share such as 0.5 or bytes such as 2GiB that blocks may
            keep; offload, full_offload (parallel/recompute.py).
        init_from: model directory or checkpoint whose weights to start from; its shape replaces `config`.
    """

    def __init__(
        self,
        config: GPTConfig,
        optimizer: OptimizerSpec | None = None,
        schedule: ScheduleSpec | None = None,
        compile: bool = False,
        activation_checkpointing: int | float | str = 0,
        init_from: str | None = None,
    ) -> None:
        super().__init__(optimizer or AdamW(), schedule or Cosine())
        Recompute.of(activation_checkpointing)  # refused before work is lost
        self.save_hyperparameters(ignore=["optimizer", "schedule"])
        self.config = config
        self.compile_loss = compile
        self.activation_checkpointing = activation_checkpointing
        self.init_from = init_from
        self.tokenizer: Tokenizer | None = None
        self.loss_function = None
        self.expert_loads: ExpertLoads | None = None
        self._validation = torch.zeros(2, dtype=torch.float64)
        self._by_position: Tensor | None = None

    def configure_model(self) -> None:
        """Builds the network once, on the strategy's device and in its precision."""
        if hasattr(self, "net"):
            return
        if self.init_from is None:
            self.net = GPT(self.config)
        else:
            self.net = self._initial_network(self.init_from)
        recompute(self.net, self.activation_checkpointing, self.compile_loss)
        whole = may_compile_loss(self.strategy)
        if self.compile_loss and not whole:
            compile_blocks(self.net, self.strategy)
        parallelize(self.net, self.strategy)
        balance_experts(self.net, self.strategy)
        self.expert_loads = ExpertLoads(self.net) if self.config.moe is not None else None
        moe = self.config.moe
        if moe is not None and moe.top_k == 1 and moe.renormalize and moe.routing != "expert_choice":
            rank_zero_warn(
                "model.config.moe: with top_k=1 and renormalize=true every gate is 1, and the loss never reaches the "
                "router: set renormalize=false, as Switch does"
            )
        # Compiled as a function, so that parameter names stay what they are in every checkpoint.
        loss = self.net.loss if self.expert_loads is None else self.net.training_loss
        self.loss_function = torch.compile(loss) if self.compile_loss and whole else loss

    def _initial_network(self, path: str) -> GPT:
        """The network at `path`, refused when the data's tokens mean something else to it."""
        from lightning_gpt.hub import open_model
        from lightning_gpt.hub.quantized_directory import refuse_quantized

        net, tokenizer = open_model(path)
        refuse_quantized(net, f"model.init_from={path}")
        ours = self.trainer.datamodule.tokenizer
        if tokenizer is not None and tokenizer.fingerprint != ours.fingerprint:
            raise ValueError(
                f"model.init_from={path} has another tokenizer ({tokenizer.scheme}) than the data ({ours.scheme}): "
                "prepare the data again with --tokenizer pointing at that model"
            )
        if self.config.block_size > net.config.block_size:
            raise ValueError(
                f"data.block_size={self.config.block_size} is larger than the model's block_size="
                f"{net.config.block_size} ({path}): set data.block_size to at most that"
            )
        self.config = net.config
        self.tokenizer = tokenizer  # the data's has the same ids, but not their roles, nor a chat template
        return net.train()

    @property
    def training_flops_per_token(self) -> float:
        """Forward and backward, analytic (nn/flops.py)."""
        return training_flops_per_token(self.config, self.trainer.datamodule.block_size)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of one micro-batch: input_ids and targets (B, T)."""
        targets = batch["targets"]
        loss_sum, count, *routers = self.loss_function(batch["input_ids"], targets, batch.get("document_ids"))
        self.tokens_seen += targets.numel() * self.ranks.size
        loss = self.mean_loss(loss_sum, count)
        if self.expert_loads is None:
            return loss
        self.expert_loads.add()
        return loss + routers[0] * count / self._divisor  # a mean like the loss's, but not logged as one

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Once per optimizer step: also moves the experts' balance biases."""
        super().configure_gradient_clipping(*args, **kwargs)
        if self.expert_loads is not None:
            self.expert_loads.end_step(self.trainer.world_size)

    def on_validation_epoch_start(self) -> None:
        """Forgets the sums of the last pass."""
        self._validation = torch.zeros(2, dtype=torch.float64, device=self.device)
        data = self.trainer.datamodule
        longer = getattr(data, "val_block_size", 0) > getattr(data, "block_size", 0)
        self._by_position = torch.zeros(2, data.val_block_size, dtype=torch.float64) if longer else None

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Adds one batch to the sums. Never compiled: its last batch may have another shape."""
        if self._by_position is not None:
            self._add_by_position(batch)
            return
        loss_sum, count = self.net.loss(batch["input_ids"], batch["targets"], batch.get("document_ids"))
        self._validation += torch.stack((loss_sum.double(), count.double()))

    def _add_by_position(self, batch: dict[str, Tensor]) -> None:
        """Windows longer than training's: the sums of every position, and of the whole."""
        targets_BT = batch["targets"]
        logits = self.net(batch["input_ids"], document_ids=batch.get("document_ids")).float()
        losses_BT = F.cross_entropy(logits.transpose(1, 2), targets_BT, ignore_index=IGNORE_INDEX, reduction="none")
        sums = torch.stack((losses_BT.double().sum(0), (targets_BT != IGNORE_INDEX).double().sum(0)))
        self._validation += sums.sum(1)
        self._by_position += sums.cpu()

    def on_validation_epoch_end(self) -> None:
        """Logs the exact mean over every validation token: val/loss (nats), val/perplexity, val/bits_per_byte."""
        self._log_evaluation("val")

    def _log_evaluation(self, name: str) -> None:
        total = self.ranks.sum(self._validation)
        loss = (total[0] / total[1].clamp(min=1)).item()
        metrics = {f"{name}/loss": loss, f"{name}/perplexity": math.exp(min(loss, 700.0))}
        bytes_per_token = getattr(self.trainer.datamodule, "bytes_per_token", None)
        if bytes_per_token:
            metrics[f"{name}/bits_per_byte"] = loss / math.log(2) / bytes_per_token
        if self._by_position is not None:
            metrics |= self._losses_by_position(name)
        self.log_dict(metrics, logger=False)
        # Lightning would write the number of the step before: it counts a step only after its validation.
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)

    def _losses_by_position(self, name: str) -> dict[str, float]:
        """<name>/loss_at_<n>: mean loss of the tokens that end at position n, a training window each."""
        total = self.ranks.sum(self._by_position.to(self.device))
        size = self.trainer.datamodule.block_size
        parts = [part.sum(1) for part in total.split(size, dim=1)]
        ends = [min((index + 1) * size, total.shape[1]) for index in range(len(parts))]
        return {f"{name}/loss_at_{end}": (part[0] / part[1].clamp(min=1)).item() for end, part in zip(ends, parts)}

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """As validation."""
        self.validation_step(batch, batch_idx)

    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        """As validation, under test/ names; the test loader is the validation split's."""
        self._log_evaluation("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the network's description and the tokenizer: the file can be used without its YAML."""
        super().on_save_checkpoint(checkpoint)
        data = self.trainer.datamodule
        checkpoint[CHECKPOINT_KEY] |= {
            "model": self.config.to_dict(),
            **about_tokenizer(self.tokenizer or data.tokenizer),
            "data_fingerprint": data.fingerprint,
        }
        if self.expert_loads is not None:
            checkpoint[CHECKPOINT_KEY]["expert_loads"] = self.expert_loads.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the counters.

        Raises:
            ValueError: the checkpoint's network is of another shape; names the fields.
        """
        super().on_load_checkpoint(checkpoint)
        # Fields that are newer than the checkpoint were at their defaults in it.
        theirs = GPTConfig.from_dict(checkpoint[CHECKPOINT_KEY]["model"]).to_dict()
        ours = self.config.to_dict()
        free = ("dropout", "init")
        if self.trainer.state.fn != "fit" and self.config.position != "learned":
            free += ("block_size", "rope_scaling")  # no weight depends on them: it may be read further than trained
        shape = [
            f"{key}: {theirs.get(key)} there, {ours[key]} here"
            for key in ours
            if theirs.get(key) != ours[key] and not key.startswith(free)
        ]
        if shape:
            raise ValueError(f"the checkpoint's model differs from model.config ({'; '.join(shape)})")
        loads = checkpoint[CHECKPOINT_KEY].get("expert_loads")
        if loads and self.expert_loads is not None and self.trainer.world_size == 1:  # it is the first rank's window
            self.expert_loads.load_state_dict(loads)
