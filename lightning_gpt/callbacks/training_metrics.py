"""The numbers of training, once per log interval: loss, rate, gradient norm, tokens, speed."""

import time

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_gpt.callbacks.peak_flops import peak_flops
from lightning_gpt.callbacks.run_record import peak_memory_bytes


class TrainingMetrics(Callback):
    """Every trainer.log_every_n_steps optimizer steps logs

    - train/loss: token mean over all tokens since the last log, over all ranks; train/perplexity of language models;
    - what the task has booked under names of its own (Task.book);
    - optim/lr (of the first parameter group), optim/gradient_norm (before clipping);
    - progress/tokens: tokens trained on so far (pairs of CLIP: progress/pairs, speed/pairs_per_second);
    - memory/peak_gib: the most that a process has held so far, of the GPU's memory or resident; of the rank with most;
    - speed/tokens_per_second, speed/tflops, speed/mfu: all devices; validation, sampling and saving are not counted,
      what a validation took is speed/validation_seconds, at its end.
      MFU as PaLM (Chowdhery et al., 2022, appendix B): analytic FLOPs over peak (callbacks/peak_flops.py).

    The logger is called directly: Lightning's self.log costs 0.26 ms per key in every step, logged or not.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self._peak: float | None = None
        self._last_step = 0
        self._last_tokens = 0
        self._clock = 0.0
        self._paused_at: float | None = None
        self._validation_began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learns the device's peak and starts the clock."""
        if trainer.is_global_zero and not trainer.fast_dev_run:
            bf16 = "bf16" in str(trainer.precision) or "16" in str(trainer.precision)
            self._peak = peak_flops(pl_module.device, torch.bfloat16 if bf16 else torch.float32)
        self._last_step, self._last_tokens = trainer.global_step, pl_module.tokens_seen
        self._clock = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Logs at the end of an interval; otherwise two comparisons."""
        step = trainer.global_step
        every = trainer.log_every_n_steps
        if step // every == self._last_step // every:  # a batch may take several steps
            return
        loss, tokens = pl_module.window_loss, pl_module.window_tokens
        if trainer.world_size > 1:
            both = [torch.as_tensor(v, dtype=torch.float64, device=pl_module.device) for v in (loss, tokens)]
            loss, tokens = pl_module.ranks.sum(torch.stack(both))
        pl_module.window_loss, pl_module.window_tokens = 0.0, 0
        loss = float(loss) / max(float(tokens), 1)
        now = time.perf_counter()
        rate = (pl_module.tokens_seen - self._last_tokens) / max(now - self._clock, 1e-9)
        self._last_step, self._last_tokens, self._clock = step, pl_module.tokens_seen, now
        flops = rate * pl_module.training_flops_per_token
        self.latest = {
            "train/loss": loss,
            "optim/lr": pl_module.learning_rate,
            "optim/gradient_norm": float(pl_module.gradient_norm),
            f"progress/{pl_module.counts}": pl_module.tokens_seen,
            f"speed/{pl_module.counts}_per_second": rate,
            "speed/tflops": flops / 1e12,
        }
        if pl_module.counts == "tokens":
            self.latest["train/perplexity"] = float(torch.tensor(loss, dtype=torch.float64).exp())
        if self._peak:
            self.latest["speed/mfu"] = flops / (self._peak * trainer.world_size)
        self.latest["memory/peak_gib"] = _fullest_rank(trainer, pl_module) / 2**30
        self.latest |= pl_module.window_metrics()
        pl_module.check_finite(loss)
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=step)

    def pause(self) -> None:
        """Stops the clock: what follows is not training."""
        self._paused_at = self._paused_at or time.perf_counter()

    def resume(self) -> None:
        """Starts the clock again."""
        if self._paused_at is not None:
            self._clock += time.perf_counter() - self._paused_at
            self._paused_at = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is not training time."""
        self.pause()
        self._validation_began = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs how long it took."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            seconds = time.perf_counter() - self._validation_began
            for logger in trainer.loggers:
                logger.log_metrics({"speed/validation_seconds": seconds}, step=trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        """Whatever came between, training goes on here."""
        if self._paused_at is not None:
            self.resume()


def _fullest_rank(trainer: Trainer, pl_module: LightningModule) -> float:
    """Bytes of the rank whose peak is the highest."""
    most = torch.tensor(float(peak_memory_bytes() or 0), dtype=torch.float64, device=pl_module.device)
    if trainer.world_size > 1:
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return float(most)
