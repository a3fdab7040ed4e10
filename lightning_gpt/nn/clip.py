"""CLIP (Radford et al., 2021): an image and a text tower into one space. Legend: N pictures or texts, D features.

The networks are open_clip's; this file builds them from settings, without a hub, and asks them what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOWERS = {"embed_dim", "vision_cfg", "text_cfg"}
INSTALL = "CLIP needs `pip install 'lightning_gpt[vision]'`"
NAME_TEMPLATES: tuple[str, ...] = ("{}",)
"""Prompts of data whose captions are bare names."""


def prompt_ensemble(name: str) -> Sequence[str]:
    """Templates of prompts, with {} for the class.

    Args:
        name: names = the class alone; simple, openai = the 7 or 80 sentences about photographs of CLIP's paper.

    Raises:
        ValueError: unknown.
    """
    if name == "names":
        return NAME_TEMPLATES
    if name not in ("simple", "openai"):
        raise ValueError(f"prompts={name!r} is unknown: use names, simple or openai")
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    templates = SIMPLE_IMAGENET_TEMPLATES if name == "simple" else OPENAI_IMAGENET_TEMPLATES
    return [template("{}") for template in templates]


def build_clip(config: dict[str, Any]) -> nn.Module:
    """An open_clip CustomTextCLIP with fresh weights.

    Args:
        config: embed_dim, vision_cfg (a ViT: image_size, patch_size, width, layers; or timm_model_name, timm_pool,
            timm_proj) and text_cfg (context_length, vocab_size, width, heads, layers), as in open_clip's own files;
            optionally quick_gelu, init_logit_scale and init_logit_bias (SigLIP: log 10 and -10).

    Raises:
        ValueError: a part is missing, or open_clip refuses it.
        ImportError: open_clip is not installed.
    """
    try:
        from open_clip import CustomTextCLIP
    except ImportError as error:
        raise ImportError(INSTALL) from error
    if missing := TOWERS - config.keys():
        raise ValueError(f"the configuration of CLIP lacks {', '.join(sorted(missing))}")
    known = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias", "custom_text"}
    if unknown := config.keys() - known:
        raise ValueError(
            f"the configuration of CLIP has unknown settings {', '.join(sorted(unknown))}: {', '.join(sorted(known))}"
        )
    settings = {key: value for key, value in config.items() if key != "custom_text"}
    try:
        return CustomTextCLIP(**settings, output_dict=True)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"open_clip cannot build these towers: {error}") from error


def image_size(net: nn.Module) -> int:
    """Pixels of a side that the image tower takes."""
    size = net.visual.image_size
    return size[0] if isinstance(size, tuple | list) else size


def lock_image_tower(net: nn.Module) -> None:
    """Freezes the image tower (LiT, Zhai et al., 2022), in evaluation mode for good; a timm tower's projection into the
    shared space goes on learning.

    open_clip's own lock would replace timm's batch norms, which hold their activation, by norms without.
    """
    net.visual.requires_grad_(False)
    locked = getattr(net.visual, "trunk", net.visual)
    if hasattr(net.visual, "head") and locked is not net.visual:
        net.visual.head.requires_grad_(True)
    locked.eval()
    locked.train = lambda mode=True: locked  # whatever is set to training around it


def quick_attention(device: torch.device) -> AbstractContextManager:
    """On CPU the plain products of attention: the fused kernel's backward pass is slower by a third of a whole step for
    the few dozen tokens of small pictures and captions."""
    if device.type != "cpu":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.MATH])


@torch.no_grad()
def zero_shot_weights(
    net: nn.Module,
    tokenize: Callable[[Sequence[str]], Tensor],
    labels: Sequence[str],
    templates: Sequence[str] = NAME_TEMPLATES,
) -> Tensor:
    """(D, number of labels) unit vectors: for each the mean of its prompts' features.

    Args:
        net: in evaluation mode.
        tokenize: texts -> (N, L).
        labels: names of the classes.
        templates: prompts with {} for the name (an ensemble, Radford et al., section 3.1.4).

    Raises:
        ValueError: a template without {}, or no label.
    """
    if not labels:
        raise ValueError("no labels: name at least one class")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"the template {template!r} has no {{}} for the class")
    device = net.logit_scale.device
    columns = []
    for label in labels:
        texts = tokenize([template.format(label) for template in templates]).to(device)
        mean = net.encode_text(texts, normalize=True).float().mean(0)
        columns.append(F.normalize(mean, dim=0))
    return torch.stack(columns, dim=1)


def pair_flops(net: nn.Module, context_length: int) -> int:
    """FLOPs of one picture and one text through the towers, forward, counted operator by operator."""
    from torch.utils.flop_counter import FlopCounterMode

    side, device = image_size(net), net.logit_scale.device
    was = net.training
    net.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.encode_image(torch.zeros(1, 3, side, side, device=device))
        net.encode_text(torch.zeros(1, context_length, dtype=torch.int64, device=device))
    net.train(was)
    return counter.get_total_flops()
