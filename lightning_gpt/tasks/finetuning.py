"""What tasks after pretraining share: they start from a model, whole or by adapters, and keep its tokenizer."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_gpt.hub.adapters import LoRA, add_adapters, base_fingerprint, trainable_state
from lightning_gpt.hub.checkpoint import about_tokenizer
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.flops import training_flops_per_token
from lightning_gpt.optim import AdamW, Linear, OptimizerSpec, ScheduleSpec
from lightning_gpt.parallel.apply import parallelize
from lightning_gpt.parallel.recompute import Recompute, recompute
from lightning_gpt.parallel.strategies import Spreading
from lightning_gpt.tasks.base import CHECKPOINT_KEY, Task
from lightning_gpt.text.tokenizer import Tokenizer


class FineTuning(Task):
    """Base of the LightningModules that go on from a model: SFT, reward models, preference learning, reinforcement.

    Dropout is off in all of them: losses compare log-probabilities of two passes, which it would make differ.

    Args:
        init_from: model directory, run, checkpoint or hub name to start from.
        optimizer: what updates the weights.
        schedule: factor on the learning rates by optimizer step.
        lora: learn low-rank adapters instead of all weights; null = all weights.
        activation_checkpointing: what is recomputed in the backward pass to save memory: 0 = nothing; n = every n-th
            block; full, selective, attention, feed_forward; a share such as 0.5 or bytes such as 2GiB that blocks may
            keep; offload, full_offload (parallel/recompute.py).
    """

    models_language = False

    def __init__(
        self,
        init_from: str,
        optimizer: OptimizerSpec | None = None,
        schedule: ScheduleSpec | None = None,
        lora: LoRA | None = None,
        activation_checkpointing: int | float | str = 0,
    ) -> None:
        super().__init__(optimizer or AdamW(lr=1e-5, betas=(0.9, 0.999), weight_decay=0.0), schedule or Linear())
        Recompute.of(activation_checkpointing)  # refused before work is lost
        self.init_from = init_from
        self.lora = lora
        self.activation_checkpointing = activation_checkpointing
        self.strict_loading = False  # frozen weights are not in checkpoints; what must be there is checked below
        self.tokenizer: Tokenizer | None = None
        self._opened: GPT | None = None
        self.base_fingerprint = ""

    @property
    def config(self) -> GPTConfig:
        """Of the network."""
        return (self._opened if self._opened is not None else self.net).config

    @property
    def context(self) -> int:
        """Tokens of the longest row that the data may give."""
        return self.config.block_size

    def setup(self, stage: str) -> None:
        """Opens the model and hands its tokenizer to the data."""
        if self.tokenizer is not None:
            return
        net, tokenizer = self.open_start()
        if tokenizer is None:
            raise ValueError(f"model.init_from={self.init_from} has no tokenizer.json: put it beside config.json")
        if tokenizer.pad_id is not None and tokenizer.pad_id == tokenizer.eos_id:
            rank_zero_warn(
                f"{self.init_from} fills rows up with its end-of-text token; here rows are masked by position, so ends "
                "of answers are learnt all the same"
            )
        self.tokenizer = tokenizer
        self.base_fingerprint = base_fingerprint(net)
        self._opened = without_dropout(net)
        self.trainer.datamodule.use_model(tokenizer, self.context)
        template = getattr(self.trainer.datamodule, "chat_template", None)
        if template is not None:  # from now on the model's own
            source = self.trainer.datamodule.encoder.template.source
            self.tokenizer.roles = replace(tokenizer.roles, chat_template=source)

    def open_start(self) -> tuple[GPT, Tokenizer | None]:
        """The network that training starts from, and its tokenizer."""
        from lightning_gpt.hub import open_model
        from lightning_gpt.hub.quantized_directory import refuse_quantized

        net, tokenizer = open_model(self.init_from)
        refuse_quantized(net, f"model.init_from={self.init_from}")
        return net, tokenizer

    def configure_model(self) -> None:
        """Takes the opened network, with fresh adapters in it if asked for."""
        if hasattr(self, "net"):
            return
        assert self._opened is not None
        net, self._opened = self._opened, None
        self.prepare_network(net)
        if self.lora is not None:
            add_adapters(net, self.lora)
        else:
            net.requires_grad_(True)
        recompute(net, self.activation_checkpointing, getattr(self, "compile_blocks", False))
        self.net = net.train().to(self.device)
        self.prepare_parallel()
        parallelize(self.net, self.strategy)

    def prepare_network(self, net: GPT) -> None:
        """Called with the opened network before adapters are put in; for copies and heads."""

    def prepare_parallel(self) -> None:
        """Called with the whole network before it is spread over devices; for what must be done to it first."""

    @property
    def training_flops_per_token(self) -> float:
        """Forward and backward of a whole network, analytic (nn/flops.py); adapters need a third less."""
        return training_flops_per_token(self.config, self.trainer.datamodule.block_size)

    def on_validation_epoch_start(self) -> None:
        """Forgets the sums of the last pass."""
        self._evaluation: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Adds to a metric of the validation under way, which is logged as val/<name>, the mean over all of it."""
        new = torch.stack([torch.as_tensor(v, dtype=torch.float64).detach().to(self.device) for v in (total, count)])
        self._evaluation[name] = self._evaluation.get(name, torch.zeros_like(new)) + new

    def keep_pace(self, batch: dict[str, Tensor]) -> None:
        """Of a rank that has no example left in a validation: sharded weights are gathered with its help too."""
        if isinstance(self.strategy, Spreading):
            self.net.hidden(batch["input_ids"])

    def evaluated(self) -> dict[str, float]:
        """Means of the validation, over all ranks; one that had no example takes part all the same."""
        names = set(self._evaluation)
        if self.trainer.world_size > 1:
            everybodys: list[set[str]] = [set()] * self.trainer.world_size
            torch.distributed.all_gather_object(everybodys, names)
            names = set().union(*everybodys)
        if not names:
            return {}
        names = sorted(names)
        nothing = torch.zeros(2, dtype=torch.float64, device=self.device)
        stacked = self.ranks.sum(torch.stack([self._evaluation.get(name, nothing) for name in names]))
        return {name: total / max(count, 1e-12) for name, (total, count) in zip(names, stacked.tolist())}

    def on_validation_epoch_end(self) -> None:
        """Logs the means under val/ names."""
        self.log_evaluation(self.evaluated(), "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As validation."""
        self.validation_step(batch, batch_idx)

    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        """As validation, under test/ names."""
        self.log_evaluation(self.evaluated(), "test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds network, tokenizer and adapters; leaves frozen weights out, which `init_from` still has."""
        super().on_save_checkpoint(checkpoint)
        about = checkpoint[CHECKPOINT_KEY]
        about |= {"model": self.net.config.to_dict(), **about_tokenizer(self.tokenizer)}
        about["data_fingerprint"] = self.trainer.datamodule.fingerprint
        state = checkpoint["state_dict"]
        for name in [name for name in state if name.startswith(self.frozen_modules)]:
            del state[name]
        if self.lora is not None:
            about |= {"lora": asdict(self.lora), **self.about_base()}
            learnt = {f"net.{name}" for name in trainable_state(self.net)}
            for name in [name for name in state if name.startswith("net.") and name not in learnt]:
                del state[name]

    def about_base(self) -> dict[str, str]:
        """Where the weights are that a checkpoint does not hold."""
        here = Path(self.init_from)
        return {
            "base": str(here.resolve()) if here.exists() else self.init_from,
            "base_fingerprint": self.base_fingerprint,
        }

    frozen_modules: tuple[str, ...] = ("reference.",)
    """Beginnings of the names of weights that never learn and are made anew on resume."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the counters.

        Raises:
            ValueError: the checkpoint is of another base, other adapters, or lacks weights that learn.
        """
        super().on_load_checkpoint(checkpoint)
        about = checkpoint[CHECKPOINT_KEY]
        theirs, ours = None if "lora" not in about else LoRA.of(about["lora"]), self.lora
        if theirs != ours:
            raise ValueError(f"the checkpoint's lora is {theirs}, model.lora is {ours}: use the same to resume")
        if ours is not None and about["base_fingerprint"] != self.base_fingerprint:
            raise ValueError(f"the checkpoint's adapters are of {about['base']}, not of {self.init_from}")
        learnt = {f"net.{name}" for name in trainable_state(self.net)}
        if missing := learnt - checkpoint["state_dict"].keys():
            lacking = ", ".join(sorted(missing)[:4])
            raise ValueError(f"the checkpoint lacks the weights {lacking}: it is another model's")


def without_dropout(net: GPT) -> GPT:
    """Switches dropout off for good, in place."""
    net.config = replace(net.config, dropout=0.0)
    for module in net.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return net


def frozen(net: nn.Module) -> nn.Module:
    """Never learns and stays in evaluation mode."""
    return net.requires_grad_(False).eval()
