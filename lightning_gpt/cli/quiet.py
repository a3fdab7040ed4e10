"""Silences tips and warnings of libraries that a reader can do nothing about."""

import logging
import warnings

CHATTERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.fabric.utilities.distributed",
    "lightning.fabric",
)
NOISE = (
    ".*sync_dist=True.*",  # what is logged has been summed over the ranks
    ".*LightningCLI.s args parameter.*",
    ".*does not have many workers.*",
    ".*litlogger.*",
    ".*LeafSpec.*",
    ".*isinstance\\(treespec.*",
    ".*GPU available but not used.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*You are using `torch.load`.*",
    ".*The `srun` command is available.*",
    ".*module\\(s\\) in eval mode.*",  # references and reward models are meant to be
)


class _DropTips(logging.Filter):
    """Lets through what is a warning or worse."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING


def quiet_lightning() -> None:
    """Filters Lightning's advertising and device banners, keeps its warnings."""
    for name in CHATTERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, _DropTips) for one in logger.filters):
            logger.addFilter(_DropTips())
    for pattern in NOISE:
        warnings.filterwarnings("ignore", message=pattern)
