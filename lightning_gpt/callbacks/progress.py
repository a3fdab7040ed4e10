"""What the terminal shows: a live bar for people, plain lines for files and pipes."""

import sys
import time

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from lightning_gpt.callbacks.training_metrics import TrainingMetrics

SHOWN = {
    "train/loss": ("loss", "{:.4f}"),
    "optim/lr": ("lr", "{:.2e}"),
    "optim/gradient_norm": ("grad norm", "{:.2f}"),
    "speed/tokens_per_second": ("tok/s", "{:,.0f}"),
    "speed/pairs_per_second": ("pairs/s", "{:,.0f}"),
    "speed/mfu": ("MFU", "{:.1%}"),
}


def describe(metrics: dict[str, float]) -> str:
    """The shown metrics on one line."""
    return "  ".join(f"{label} {form.format(metrics[key])}" for key, (label, form) in SHOWN.items() if key in metrics)


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


class Progress(ProgressBar):
    """A rich progress bar on a terminal, otherwise a line every `plain_every` seconds at most.

    Counts optimizer steps. Validation results get a line of their own.

    Args:
        plain_every: least seconds between two plain lines.
    """

    def __init__(self, plain_every: float = 5.0) -> None:
        super().__init__()
        self.plain_every = plain_every
        self._enabled = True
        self._live = None
        self._shown_step = 0
        self._shown_at = 0.0
        self._started = 0.0
        self._first_step = 0

    def disable(self) -> None:
        """Called by Lightning on other ranks."""
        self._enabled = False

    def enable(self) -> None:
        """Called by Lightning."""
        self._enabled = True

    def say(self, text: str) -> None:
        """A line above the bar, or a plain one; on the first rank only."""
        if self._enabled:
            if self._live:
                self._live.console.print(text, highlight=False)
            else:
                print(text, file=sys.stderr, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar."""
        self._started, self._shown_at = time.monotonic(), 0.0
        self._first_step = self._shown_step = trainer.global_step
        if self._enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._live = RichProgress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
                refresh_per_second=4,
            )
            self._live.start()
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._task = self._live.add_task("", total=total, completed=trainer.global_step, text="")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        """Moves the bar; prints a plain line when there is news and it is time."""
        step = trainer.global_step
        every = trainer.log_every_n_steps
        if not self._enabled or step // every == self._shown_step // every:
            return
        self._shown_step = step
        metrics = next((c.latest for c in trainer.callbacks if isinstance(c, TrainingMetrics)), {})
        if self._live:
            self._live.update(self._task, completed=step, text=describe(metrics))
        elif (now := time.monotonic()) - self._shown_at >= self.plain_every:
            self._shown_at = now
            elapsed = now - self._started
            left = elapsed / max(step - self._first_step, 1) * (trainer.max_steps - step)
            self.say(f"step {step}/{trainer.max_steps}  {describe(metrics)}  {duration(elapsed)}<{duration(left)}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A line with the validation's results."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn != "fit":
            self._report(trainer)
        elif values := self._evaluated(trainer):
            self.say(f"step {trainer.global_step}  validation: {values}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A line with the test's results."""
        self._report(trainer)

    def _evaluated(self, trainer: Trainer) -> str:
        shown = {key: float(v) for key, v in trainer.callback_metrics.items() if key.startswith(("val/", "test/"))}
        return "  ".join(f"{key.partition('/')[2]} {value:.4f}" for key, value in shown.items())

    def _report(self, trainer: Trainer) -> None:
        """Results that were asked for go to standard output."""
        if self._enabled:
            print(self._evaluated(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the bar."""
        self._close()

    def _close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None
