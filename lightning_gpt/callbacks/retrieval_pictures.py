"""What CLIP finds: pictures after each validation."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_gpt.data.picture_sheet import Cell, draw_sheet, save_sheet
from lightning_gpt.tasks.clip import CLIP

QUERIES, FOUND, MATRIX = 8, 6, 32


class RetrievalPictures(Callback):
    """For CLIP draws retrieval.png (captions of the validation set and the pictures nearest to each, the right one
    framed; of the data's second set transfer_retrieval.png) and similarity.png (the first pairs, each with each) into
    the run's directory and to TensorBoard."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """On the first rank; other tasks have none."""
        if not isinstance(pl_module, CLIP) or trainer.sanity_checking or trainer.fast_dev_run:
            return
        directory = trainer.log_dir  # a broadcast: every rank takes part
        if not trainer.is_global_zero or directory is None:
            return
        for name, features in pl_module.validation_features.items():
            if "texts" not in features:
                continue
            prefix = "" if name == "val" else f"{name}_"
            sheet = retrieval_sheet(trainer.datamodule, name, features)
            save_sheet(sheet, Path(directory, f"{prefix}retrieval.png"))
            figure = similarity_figure(features)
            temporary = Path(directory, f".{prefix}similarity.tmp.png")
            figure.savefig(temporary, dpi=110)
            temporary.replace(Path(directory, f"{prefix}similarity.png"))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    import numpy as np

                    pixels = np.asarray(sheet)
                    logger.experiment.add_image(f"{prefix}retrieval", pixels, trainer.global_step, dataformats="HWC")
                    logger.experiment.add_figure(f"{prefix}similarity", figure, trainer.global_step)


def retrieval_sheet(data, name: str, features: dict[str, torch.Tensor]):
    """Evenly spread captions with the pictures nearest to them.

    Args:
        data: ImageTextData.
        name: of its set.
        features: images, texts (N, D) and index (N,), as CLIP.gathered gives them.
    """
    rows, count = [], len(features["index"])
    for query in range(0, count, max(1, count // QUERIES))[:QUERIES]:
        similar = features["images"] @ features["texts"][query]
        cells = []
        for place in similar.topk(min(FOUND, count)).indices.tolist():
            index = int(features["index"][place])
            text = data.caption(data.pictures(name)[index])
            cells.append(Cell(data.opened(name, index), text, place == query))
        caption = data.caption(data.pictures(name)[int(features["index"][query])])
        rank = int((similar > similar[query]).sum()) + 1
        rows.append((f"{caption}  (its own is number {rank} of {count})", cells))
    return draw_sheet(rows)


def similarity_figure(features: dict[str, torch.Tensor]):
    """Cosine of the first pictures (rows) with the first captions (columns)."""
    from matplotlib.figure import Figure

    matrix = features["images"][:MATRIX] @ features["texts"][:MATRIX].T
    figure = Figure(figsize=(4.6, 4))
    axes = figure.subplots()
    shown = axes.imshow(matrix.numpy(), cmap="viridis")
    axes.set(xlabel="captions", ylabel="pictures", title="cosine of pictures and captions")
    figure.colorbar(shown)
    figure.tight_layout()
    return figure
