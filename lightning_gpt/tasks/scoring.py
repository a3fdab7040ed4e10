"""What reward models share: a network with a scalar head, and the answers' last tokens."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.hub.reward_directory import RewardScale
from lightning_gpt.nn import GPT
from lightning_gpt.nn.heads import ScalarHead
from lightning_gpt.nn.loss import IGNORE_INDEX
from lightning_gpt.parallel.apply import parallelize_head
from lightning_gpt.tasks.base import CHECKPOINT_KEY
from lightning_gpt.tasks.finetuning import FineTuning


def whole_rows(input_ids_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Undoes the shift of a batch: rows with their last token, (B, T + 1), and where that is, (B,)."""
    last_B = torch.where(targets_BT != IGNORE_INDEX, torch.arange(targets_BT.shape[1], device=targets_BT.device), 0)
    last_B = last_B.amax(-1)
    rows = torch.arange(len(last_B), device=last_B.device)
    ids_BT = torch.cat((input_ids_BT, torch.zeros_like(input_ids_BT[:, :1])), dim=1)
    ids_BT[rows, last_B + 1] = targets_BT[rows, last_B].clamp(min=0)
    return ids_BT, last_B + 1


def score_at(net: GPT, head: ScalarHead, ids_BT: Tensor, last_B: Tensor) -> Tensor:
    """Rewards (B,) read at one token of each row."""
    hidden_BTC = net.hidden(ids_BT)
    return head(hidden_BTC[torch.arange(len(last_B), device=last_B.device), last_B])


class Scoring(FineTuning):
    """Base of outcome and process reward models."""

    @property
    def scale(self) -> RewardScale:
        """What the head's numbers mean."""
        return RewardScale()

    @property
    def context(self) -> int:
        """One token less: a row is scored with its last token."""
        return super().context - 1

    def prepare_network(self, net: GPT) -> None:
        """Adds the head; the language model's own is not used and does not learn."""
        self.head = ScalarHead(net.config.n_embd)

    def configure_model(self) -> None:
        """As FineTuning."""
        if hasattr(self, "net"):
            return
        super().configure_model()
        parallelize_head(self.head.to(self.device), self.strategy)
        if not self.config.tie_embeddings:
            self.net.head.requires_grad_(False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the scores mean."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY]["reward"] = asdict(self.scale)

    @property
    def nominal_tokens(self) -> int:
        """Examples of a full micro-batch: the loss is a mean over these, not over tokens."""
        return self.trainer.datamodule.batch_size
