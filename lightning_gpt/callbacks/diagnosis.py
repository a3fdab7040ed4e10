"""Watches a training run for the sicknesses that callbacks/diagnosis_rules.py knows."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_gpt.callbacks.diagnosis_report import Finding
from lightning_gpt.callbacks.diagnosis_rules import diagnose, non_finite_finding
from lightning_gpt.callbacks.diagnosis_signals import Facts, Signals
from lightning_gpt.callbacks.jsonl_logger import JsonlLogger
from lightning_gpt.callbacks.non_finite import locate_non_finite
from lightning_gpt.callbacks.progress import Progress
from lightning_gpt.callbacks.training_probes import FLAT_BELOW, UnitProbe, UpdateProbe, WaitClock
from lightning_gpt.tasks import NonFiniteError

DIAGNOSIS_FILE = "diagnosis.json"
JUDGEMENTS = 25
"""How often a run is judged in all, besides its validations."""
LOOKS = 100
"""How often weights, gradients and hidden units are looked at in all; on logging steps."""


def read_diagnosis(directory: Path) -> dict[str, Any]:
    """Content of diagnosis.json: facts and findings; empty when it is missing or damaged."""
    try:
        content = json.loads((directory / DIAGNOSIS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class Diagnosis(Callback):
    """Says what ails a run while it trains, once for each finding, and keeps it in the run's diagnosis.json.

    Every trainer.log_every_n_steps optimizer steps logs, under diagnosis/:

    - gradient_norm_max, clipped: the largest norm and the share of clipped steps since the last log;
    - speed/data_wait (not under diagnosis/): share of the wall time since the last log spent waiting for a batch;

    and at most a hundred times in a run, at its logging steps:

    - update_ratio: norm of the step's update over the norm of the weights, of the matrices;
    - gradient_depth: the first block's gradient over the last block's;
    - dead_units, dead_units_worst, dead_units_layer: share of the feed-forwards' units that no token of the batch
      turns on; in the worst layer; which it is. With model.compile they are looked at in validation.

    When training stops because a number is not finite, its batch is run again to find where that came from.

    Args:
        enabled: whether to measure and judge. Where a number stops being finite is looked for in any case.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.findings: dict[str, Finding] = {}
        self.facts = Facts()
        self._update: UpdateProbe | None = None
        self._units: UnitProbe | None = None
        self._wait = WaitClock()
        self._batch: tuple[Any, int] | None = None
        self._directory: Path | None = None
        self._metrics: Path | None = None
        self._rows: list[dict[str, float]] = []
        self._read = 0
        self._next_judgement = 0
        self._look_every = 1
        self._first_step = self._last_step = 0
        self._largest: Tensor | float = 0.0
        self._clipped: Tensor | float = 0.0

    # ---- measuring

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Builds the probes, and takes up what an earlier attempt of the run has found."""
        logger = next((one for one in trainer.loggers if isinstance(one, JsonlLogger)), None)
        self._first_step = self._last_step = trainer.global_step
        if logger is not None and trainer.is_global_zero and not trainer.fast_dev_run:
            self._metrics, self._directory = logger.path, logger.path.parent
        self.enabled = self.enabled and getattr(pl_module, "models_language", True)
        if not self.enabled:
            return
        network = getattr(pl_module, "net", pl_module)
        self._update = UpdateProbe(network)
        config = getattr(pl_module, "config", None)
        if getattr(config, "feed_forward", None) in FLAT_BELOW:
            self._units = UnitProbe(network, config.feed_forward)
        self.facts = _facts(trainer, pl_module)
        if self._directory is not None and trainer.global_step:
            before = read_diagnosis(self._directory)
            self.facts = self.facts.merged(Facts.of(before.get("facts")))
            kept = [Finding(**one) for one in before.get("findings", []) if one["step"] <= trainer.global_step]
            self.findings = {one.rule: one for one in kept}
        self._next_judgement = self._after(trainer)
        logs = -(-max(trainer.max_steps, 0) // (LOOKS * trainer.log_every_n_steps))
        self._look_every = max(1, logs) * trainer.log_every_n_steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        """Stops the clock of waiting; remembers the batch for the case that a number breaks in it."""
        self._batch = (batch, batch_idx)
        if not self.enabled:
            return
        self._wait.batch_came(pl_module.device)
        if self._units is not None and self._measures(trainer) and not getattr(pl_module, "compile_loss", False):
            self._units.begin()

    def _measures(self, trainer: Trainer) -> bool:
        """Whether the step under way is looked at closely: LOOKS of those that are logged, and the first."""
        step = trainer.global_step
        return (step + 1) % self._look_every == 0 or step == self._first_step == 0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer) -> None:
        """Looks at gradients and at the weights that are about to change."""
        if self.enabled and self._measures(trainer):
            self._update.before_step()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Books the step; at the end of an interval logs, and from time to time judges."""
        if not self.enabled:
            return
        step = trainer.global_step
        if step != self._last_step:
            self._last_step = step
            self._book(trainer, pl_module)
            if step % trainer.log_every_n_steps == 0:
                self._log(trainer, pl_module)
            elif step == 1:
                self._measured(trainer, pl_module)
            if step >= self._next_judgement and trainer.is_global_zero:
                self._next_judgement = self._after(trainer)
                self.judge(trainer)
        self._wait.batch_ended()

    def _book(self, trainer: Trainer, pl_module: LightningModule) -> None:
        norm, limit = pl_module.gradient_norm, trainer.gradient_clip_val
        if norm.device.type == "cpu":
            norm = norm.item()
            self._largest = max(self._largest, norm)
        else:
            self._largest = torch.maximum(torch.as_tensor(self._largest, device=norm.device), norm)
        if limit:
            self._clipped = self._clipped + (norm > limit)

    def _measured(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Of the probes; the run's first step tells how much the weights move for a rate."""
        found = self._update.after_step()
        if self._units is not None:
            found |= self._units.end()
        if self.facts.update_per_lr is None and "update_ratio" in found and pl_module.learning_rate:
            optimizer = trainer.optimizers[0]
            # Momentum of torch's SGD adds gradients up: while they agree, updates grow to 1 / (1 - momentum) times it.
            momentum = optimizer.param_groups[0]["momentum"] if isinstance(optimizer, torch.optim.SGD) else 0.0
            self.facts.update_per_lr = found["update_ratio"] / pl_module.learning_rate / (1 - momentum)
        return found

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = self._measured(trainer, pl_module)
        found["gradient_norm_max"] = float(self._largest)
        if trainer.gradient_clip_val:
            found["clipped"] = float(self._clipped) / trainer.log_every_n_steps
        self._largest = self._clipped = 0.0
        self._wait.batch_ended()
        row = {f"diagnosis/{name}": value for name, value in found.items()}
        share = self._wait.share()
        if share is not None:
            row["speed/data_wait"] = share
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What follows is no waiting for data."""
        self._wait.interrupted()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Saving is no waiting for data."""
        self._wait.interrupted()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Looks at the hidden units of a compiled network here: hooks would make training compile anew."""
        if self._units is not None and batch_idx == 0 and getattr(pl_module, "compile_loss", False):
            self._units.begin()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Logs what was seen."""
        if self._units is not None and batch_idx == 0 and getattr(pl_module, "compile_loss", False):
            found = {f"diagnosis/{name}": value for name, value in self._units.end().items()}
            for logger in trainer.loggers:
                logger.log_metrics(found, step=trainer.global_step)

    # ---- judging

    def _after(self, trainer: Trainer) -> int:
        """The step of the next judgement."""
        return trainer.global_step + max(5 * trainer.log_every_n_steps, trainer.max_steps // JUDGEMENTS)

    def signals(self) -> Signals:
        """What the run has logged so far; only what is new is read."""
        if self._metrics is not None and self._metrics.exists():
            with open(self._metrics, encoding="utf-8") as file:
                file.seek(self._read)
                for line in file:
                    self._rows.append(json.loads(line))
                self._read = file.tell()
        return Signals.of_rows(self._rows, self.facts)

    def judge(self, trainer: Trainer) -> None:
        """Prints and keeps what is found for the first time."""
        if self._directory is None:
            return
        for finding in diagnose(self.signals()).findings:
            if finding.rule not in self.findings:
                self._found(trainer, finding)

    def _found(self, trainer: Trainer, finding: Finding) -> None:
        self.findings[finding.rule] = finding
        self._write()
        say = next((one.say for one in trainer.callbacks if isinstance(one, Progress)), None)
        if say is not None:
            say(f"step {finding.step}  diagnosis: {finding.line}")

    def _write(self) -> None:
        path = self._directory / DIAGNOSIS_FILE
        temporary = path.with_suffix(".tmp")
        content = {
            "format": 1,
            "facts": asdict(self.facts),
            "findings": [asdict(one) for one in self.findings.values()],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """There is a new validation loss to judge by."""
        if self.enabled and trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.is_global_zero:
            self.judge(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judges the whole run."""
        if self.enabled and self._directory is not None:
            self.judge(trainer)
            self._write()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Names the place where a number broke, in the error itself too; keeps what is known of a run that fails."""
        if isinstance(exception, NonFiniteError):
            place = self._locate(trainer, pl_module)
            if place is not None:
                exception.args = (f"{exception}; the first that is not finite is {place}",)
            if self._directory is not None:
                finding = non_finite_finding(trainer.global_step + 1, place, str(exception))
                self.findings[finding.rule] = finding
        if self._directory is not None and (self.enabled or self.findings):
            with suppress(OSError):  # a full disk, say: the exception that is under way says more
                self._write()

    def _locate(self, trainer: Trainer, pl_module: LightningModule) -> str | None:
        if self._units is not None:
            self._units.end()
        if self._batch is None:
            return None
        if trainer.world_size > 1 and pl_module.device.type != "cpu":
            return None  # ranks would look in different places, and wait for one another in the network's collectives
        try:
            return locate_non_finite(
                getattr(pl_module, "net", pl_module),
                lambda: pl_module.training_step(*self._batch),
                trainer.precision_plugin.train_step_context,
            )
        except Exception as error:  # the search is an extra: the reason of the stop must not be lost in it
            return f"not found ({type(error).__name__} in running the batch again)"


def _facts(trainer: Trainer, pl_module: LightningModule) -> Facts:
    config, data = getattr(pl_module, "config", None), trainer.datamodule
    spec = getattr(pl_module, "optimizer_spec", None)
    facts = Facts(
        max_steps=trainer.max_steps if trainer.max_steps > 0 else None,
        clip=trainer.gradient_clip_val or None,
        optimizer=type(spec).__name__ if spec is not None else None,
        lr=getattr(spec, "lr", None),
        init_std=getattr(config, "init_std", None) if getattr(config, "initialization", "") == "gpt2" else None,
        pretrained=bool(getattr(pl_module, "init_from", None)),
        parameters=sum(parameter.numel() for parameter in pl_module.parameters()),
        vocab_size=getattr(data, "vocab_size", None),
    )
    return facts.merged(corpus_facts(getattr(data, "data_dir", None)))


def corpus_facts(data_dir: str | Path | None) -> Facts:
    """What a prepared corpus says; nothing where there is none."""
    from lightning_gpt.data.baseline import unigram_entropy
    from lightning_gpt.data.corpus_meta import CorpusMeta

    try:
        meta = CorpusMeta.load(data_dir)
        tokens = meta.split("train").tokens
        return Facts(vocab_size=meta.tokenizer.vocab_size, train_tokens=tokens, unigram=unigram_entropy(meta, data_dir))
    except (ValueError, OSError, TypeError):
        return Facts()
