"""Attention weights as pictures: one small map for each head of each layer."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lightning_gpt.callbacks.samples import SHARDED
from lightning_gpt.nn import GPT


@torch.no_grad()
def attention_weights(net: GPT, ids: list[int]) -> Tensor:
    """Weights of every layer and head on one text, (L, H, T, T); rows are queries.

    Raises:
        ValueError: the text is longer than the network's context.
    """
    record: list[Tensor] = []
    net.hidden(torch.tensor([ids], device=net.token_embedding.weight.device), record=record)
    return torch.stack([weights[0].float().cpu() for weights in record])


def draw_attention(weights_LHTT: Tensor, labels: list[str] | None = None, layers: list[int] | None = None):
    """A grid of maps, a row for each layer, a column for each head.

    Args:
        weights_LHTT: from attention_weights.
        labels: the tokens; shown when they are few.
        layers: which layers; None = all.

    Returns:
        a matplotlib Figure. Colours end at each map's largest weight, which its title says.
    """
    from matplotlib.figure import Figure

    layers = list(range(len(weights_LHTT))) if layers is None else layers
    H, T = weights_LHTT.shape[1], weights_LHTT.shape[-1]
    side = 1.6 if T > 24 else 2.2
    figure = Figure(figsize=(side * H + 0.8, side * len(layers) + 0.6), layout="constrained")
    grid = figure.subplots(len(layers), H, squeeze=False)
    for row, layer in zip(grid, layers):
        for head, axes in enumerate(row):
            weights = weights_LHTT[layer, head].numpy()
            axes.imshow(weights, cmap="magma", vmin=0, vmax=weights.max(), interpolation="nearest")
            axes.set_title(f"layer {layer} head {head}: {weights.max():.2f}", fontsize=6)
            axes.set(xticks=[], yticks=[])
            if labels and T <= 24:
                axes.set_xticks(range(T), labels, fontsize=4, rotation=90)
                axes.set_yticks(range(T), labels, fontsize=4)
    return figure


class AttentionMaps(Callback):
    """After each validation draws the attention weights on one text to TensorBoard.

    Args:
        text: what to look at; null = off.
    """

    def __init__(self, text: str | None = None) -> None:
        self.text = text

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """On rank 0 only; sharded networks cannot be looked at by one rank and are left alone."""
        if not self.text or not isinstance(pl_module.net, GPT) or trainer.sanity_checking or trainer.fast_dev_run:
            return
        directory = trainer.log_dir  # a broadcast: every rank takes part
        if not trainer.is_global_zero or isinstance(trainer.strategy, SHARDED):
            return
        tokenizer, net = trainer.datamodule.tokenizer, pl_module.net
        ids = tokenizer.encode(self.text)[: net.config.block_size]
        training = net.training
        weights = attention_weights(net.eval(), ids)
        net.train(training)
        figure = draw_attention(weights, [tokenizer.decode([token]) for token in ids])
        if directory:
            figure.savefig(Path(directory) / "attention.png", dpi=110)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("attention", figure, trainer.global_step)
