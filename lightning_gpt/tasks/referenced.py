"""What learning against a reference shares: the frozen model that the policy started from, and log-probabilities."""

from contextlib import nullcontext
from copy import deepcopy

import torch
from torch import Tensor

from lightning_gpt.hub.adapters import adapters_off
from lightning_gpt.nn import GPT
from lightning_gpt.objectives.log_probs import hidden_log_probs
from lightning_gpt.parallel.vocabulary import whole_weight
from lightning_gpt.tasks.finetuning import FineTuning, frozen
from lightning_gpt.tasks.rollout import fresh_casts


def answer_log_probs(
    net: GPT, input_ids_BT: Tensor, targets_BT: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """log p of every target and the entropy of its prediction, (B, T) each, float32, 0 where there is no target."""
    hidden_BTC = net.hidden(input_ids_BT)
    config = net.config
    head, cap = whole_weight(net.head.weight), config.logit_softcap
    return hidden_log_probs(hidden_BTC, head, targets_BT, config.vocab_size, cap, temperature)


class Referenced(FineTuning):
    """Base of tasks that compare the policy with the model it started from.

    With adapters the reference is the same network with them switched off; else it is a frozen copy, which never
    learns and is in no checkpoint.
    """

    keeps_reference = True
    """Whether a reference is needed at all."""

    def prepare_network(self, net: GPT) -> None:
        """Copies the network before anything learns."""
        if self.keeps_reference and self.lora is None:
            self.reference = frozen(deepcopy(net))

    def configure_model(self) -> None:
        """As FineTuning; the copy goes where the network is."""
        if hasattr(self, "net"):
            return
        super().configure_model()
        if hasattr(self, "reference"):
            self.reference.to(self.device)

    def train(self, mode: bool = True) -> "Referenced":
        """The reference stays in evaluation mode."""
        super().train(mode)
        if hasattr(self, "reference"):
            self.reference.eval()
        return self

    @torch.no_grad()
    def reference_log_probs(self, input_ids_BT: Tensor, targets_BT: Tensor, temperature: float = 1.0) -> Tensor:
        """As answer_log_probs, of the reference."""
        net = getattr(self, "reference", self.net)
        with fresh_casts(), adapters_off(net) if net is self.net else nullcontext():
            return answer_log_probs(net, input_ids_BT, targets_BT, temperature)[0]
