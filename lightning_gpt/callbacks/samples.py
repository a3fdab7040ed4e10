"""Text that the network writes while it learns."""

import os

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from lightning_gpt.inference import SamplingConfig, generate_text
from lightning_gpt.nn import GPT

SHARDED = (FSDPStrategy, ModelParallelStrategy)


class Samples(Callback):
    """After each validation continues prompts and logs the text to TensorBoard and samples.txt of the run.

    Args:
        prompts: what to continue.
        tokens: how many new tokens each; 0 = no samples.
        temperature: of sampling.
        top_k: keep the k likeliest tokens; null = all.
        seed: the same draws every time, so that only the weights differ between samples.
    """

    def __init__(
        self,
        prompts: tuple[str, ...] = ("\n",),
        tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = None,
        seed: int = 0,
    ) -> None:
        if tokens < 0:
            raise ValueError(f"samples.tokens={tokens} must be 0 (no samples) or positive")
        self.prompts, self.tokens, self.seed = tuple(prompts), tokens, seed
        self.sampling = SamplingConfig(temperature=temperature, top_k=top_k)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Samples on rank 0 only; sharded networks cannot be sampled by one rank and are left alone."""
        if (
            not self.tokens
            or not isinstance(pl_module.net, GPT)
            or trainer.sanity_checking
            or trainer.fast_dev_run
            or trainer.state.fn != "fit"
        ):
            return
        directory = trainer.log_dir  # a broadcast: every rank takes part
        if not trainer.is_global_zero or isinstance(trainer.strategy, SHARDED):
            return
        moe = pl_module.net.config.moe
        if moe is not None and moe.routing == "expert_choice":
            return  # cannot generate
        texts = list(self.prompts)
        net, training = pl_module.net, pl_module.net.training
        net.eval()
        for piece in generate_text(
            net, trainer.datamodule.tokenizer, self.prompts, self.tokens, sampling=self.sampling, seed=self.seed
        ):
            texts[piece.row] += piece.text
        net.train(training)
        step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for row, text in enumerate(texts):
                    # Four spaces make TensorBoard's Markdown keep line breaks.
                    indented = "\n".join("    " + line for line in text.splitlines())
                    logger.experiment.add_text(f"samples/{row}", indented, step)
        if directory:
            with open(os.path.join(directory, "samples.txt"), "a", encoding="utf-8") as file:
                file.writelines(f"--- step {step}, prompt {row} ---\n{text}\n" for row, text in enumerate(texts))
