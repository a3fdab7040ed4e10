"""Contrastive losses of image and text features. Legend: N pairs, D features.

Both come from open_clip, whose distributed forms give the gradients of one big batch (tests/tasks/test_clip.py). Here
stand their settings, how the temperature is kept in bounds, and readable twins for one process.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def info_nce(images_ND: Tensor, texts_ND: Tensor, scale: Tensor | float) -> Tensor:
    """Mean of both directions' cross-entropies (CLIP, Radford et al., 2021, figure 3), in nats.

    Args:
        images_ND, texts_ND: unit vectors; row n of both belong together.
        scale: inverse temperature.
    """
    logits_NN = scale * images_ND.float() @ texts_ND.float().T
    same_N = torch.arange(len(logits_NN), device=logits_NN.device)
    return (F.cross_entropy(logits_NN, same_N) + F.cross_entropy(logits_NN.T, same_N)) / 2


def sigmoid_loss(images_ND: Tensor, texts_ND: Tensor, scale: Tensor | float, bias: Tensor | float) -> Tensor:
    """Each picture with each text a yes or no, summed over texts, mean over pictures (SigLIP, Zhai et al., 2023)."""
    logits_NN = scale * images_ND.float() @ texts_ND.float().T + bias
    signs_NN = 2 * torch.eye(len(logits_NN), device=logits_NN.device) - 1
    return -F.logsigmoid(signs_NN * logits_NN).sum() / len(logits_NN)


class InfoNCE:
    """Which text of the batch belongs to a picture, and which picture to a text (CLIP).

    Args:
        temperature: to start with; 0.07 as CLIP's.
        learn_temperature: let it be learnt.
        max_scale: bound of the inverse temperature, kept after every step.
    """

    initial_bias: float | None = None

    def __init__(self, temperature: float = 0.07, learn_temperature: bool = True, max_scale: float = 100.0) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be positive, such as 0.07")
        if max_scale * temperature < 1:
            raise ValueError(f"max_scale={max_scale} is below 1 / temperature = {1 / temperature:.4g}: raise it")
        self.temperature, self.learn_temperature, self.max_scale = temperature, learn_temperature, max_scale

    def prepare(self, net: nn.Module) -> None:
        """Sets the network's temperature and bias to begin with."""
        with torch.no_grad():
            net.logit_scale.fill_(-math.log(self.temperature))
        net.logit_scale.requires_grad_(self.learn_temperature)
        if self.initial_bias is None:
            net.logit_bias = None  # an unused parameter would stop DDP
        else:
            bias = torch.full_like(net.logit_scale, self.initial_bias)
            net.logit_bias = nn.Parameter(bias)

    def clamp(self, net: nn.Module) -> None:
        """Keeps the inverse temperature between 1 and max_scale."""
        with torch.no_grad():
            net.logit_scale.clamp_(0.0, math.log(self.max_scale))

    def build(self, rank: int, world_size: int) -> nn.Module:
        """open_clip's loss for this process: called with features (N, D), scale and bias, gives a scalar."""
        from open_clip import ClipLoss

        # local_loss alone, and the default without gradients, are wrong: the cosine to the true gradient is 0.94 and
        # its length one half.
        return ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)

    def plain(self, images_ND: Tensor, texts_ND: Tensor, scale: Tensor, bias: Tensor | float) -> Tensor:
        """The loss of one process, by its readable twin."""
        return info_nce(images_ND, texts_ND, scale)

    def chance(self, pairs: int) -> float:
        """Loss of towers that have learnt nothing, with so many pairs in a batch over all ranks."""
        return math.log(pairs)


class SigLIP(InfoNCE):
    """Does this text belong to this picture: one decision for each combination (SigLIP).

    Args:
        temperature: to start with; 0.1 as the paper's.
        learn_temperature: let it be learnt.
        max_scale: bound of the inverse temperature, kept after every step.
        bias: to start with; -10 as the paper's: at first almost nothing belongs together.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        learn_temperature: bool = True,
        max_scale: float = 100.0,
        bias: float = -10.0,
    ) -> None:
        super().__init__(temperature, learn_temperature, max_scale)
        self.initial_bias = bias

    def build(self, rank: int, world_size: int) -> nn.Module:
        """As InfoNCE."""
        from open_clip.loss import SigLipLoss

        return SigLipLoss(rank=rank, world_size=world_size)

    def plain(self, images_ND: Tensor, texts_ND: Tensor, scale: Tensor, bias: Tensor | float) -> Tensor:
        """As InfoNCE."""
        return sigmoid_loss(images_ND, texts_ND, scale, bias)

    def chance(self, pairs: int) -> float:
        """The best loss of one constant answer: log-odds of 1 in `pairs`."""
        rare = 1 / pairs
        return pairs * -(rare * math.log(rare) + (1 - rare) * math.log1p(-rare)) if pairs > 1 else 0.0
