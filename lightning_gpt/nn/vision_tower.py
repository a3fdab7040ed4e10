"""Patch features of an image tower of open_clip. Legend: N pictures, C colours, H x W pixels, P patches, D features.

The towers are open_clip's (vision transformers, residual networks, and whatever timm has); this file takes the features
of one of their layers, as LLaVA does (Liu et al., 2023, section 4.1), and says what shape they have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

INSTALL = "pictures need `pip install 'lightning_gpt[vision]'`"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that OpenAI's CLIP learnt from."""


class VisionTower(nn.Module):
    """Features of a picture's patches at one layer, (N, P, D).

    Always in evaluation mode: dropped patches would change their number, and few pictures a step would spoil the
    statistics of batch norms.

    Args:
        visual: image tower of open_clip (`model.visual`), or any module with its `forward_intermediates`.
        layer: whose output is taken, counted from the end: -1 the last, -2 the one before (LLaVA). Layers are the
            blocks of a vision transformer and the stages of a convolutional network. A class token is left out.
        config: embed_dim, vision_cfg and quick_gelu that `visual` was built from, as in open_clip's own files; only
            needed to save it.
        preprocess: how pictures become pixels, as open_clip's PreprocessCfg; what is left out is CLIP's.
        trainable: whether the features' gradients reach the tower. What they do not depend on (later layers, the
            projection into CLIP's space) stays frozen.

    Raises:
        ValueError: a layer that is not there, or no such tower.
    """

    def __init__(
        self,
        visual: nn.Module,
        layer: int = -1,
        config: dict[str, Any] | None = None,
        preprocess: dict[str, Any] | None = None,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        if not hasattr(visual, "forward_intermediates"):
            raise ValueError(f"{type(visual).__name__} has no forward_intermediates: use an image tower of open_clip")
        if layer >= 0:
            raise ValueError(f"layer={layer} must count from the end: -1 is the last layer, -2 the one before")
        self.visual = visual
        self.layer = layer
        self.config = config
        self.trainable = trainable
        size = visual.image_size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        """Height and width of the pictures in pixels."""
        self.preprocess = _preprocess(self.image_size, preprocess or {})
        """How pictures become pixels: size, mode, mean, std, interpolation, resize_mode, fill_color."""
        self.eval()
        self.requires_grad_(trainable)
        try:
            with torch.enable_grad():
                features_NPD = self(torch.zeros(1, 3, *self.image_size, device=self._weight.device))
        except AssertionError as error:
            raise ValueError(f"layer={layer} is not in this tower: {error}") from None
        if trainable:
            self._freeze_the_rest(features_NPD)
        self.tokens: int = features_NPD.shape[1]
        """P, the number of a picture's patches."""
        self.width: int = features_NPD.shape[2]
        """D, the features of each patch."""

    @property
    def _weight(self) -> Tensor:
        return next(self.visual.parameters())

    def train(self, mode: bool = True) -> VisionTower:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """(N, P, D), patches in reading order.

        Raises:
            ValueError: pictures of another size.
        """
        if pixels_NCHW.shape[1:] != (3, *self.image_size):
            raise ValueError(
                f"pictures of shape {tuple(pixels_NCHW.shape[1:])} for a tower of {(3, *self.image_size)}: prepare "
                "them as tower.preprocess says"
            )
        transformer = hasattr(self.visual, "transformer")
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            features = self.visual.forward_intermediates(
                pixels_NCHW.to(self._weight.dtype),
                indices=[self.layer],
                stop_early=True,
                intermediates_only=True,
                output_fmt="NLC" if transformer else "NCHW",  # convolutional towers know no other
            )["image_intermediates"][0]
        return features if transformer else features.flatten(2).transpose(1, 2)

    @torch.enable_grad()
    def _freeze_the_rest(self, features_NPD: Tensor) -> None:
        """Parameters that get no gradient would make DDP wait for one."""
        parameters = list(self.parameters())
        reached = torch.autograd.grad(features_NPD.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, reached):
            parameter.requires_grad_(gradient is not None)


def _preprocess(image_size: tuple[int, int], given: dict[str, Any]) -> dict[str, Any]:
    """A whole PreprocessCfg."""
    height, width = image_size
    return {
        "mode": "RGB",
        "mean": CLIP_MEAN,
        "std": CLIP_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
        **given,
        "size": height if height == width else image_size,
    }


def build_tower(
    vision_cfg: dict[str, Any],
    embed_dim: int,
    layer: int = -1,
    quick_gelu: bool = False,
    preprocess: dict[str, Any] | None = None,
    trainable: bool = False,
) -> VisionTower:
    """A tower with fresh weights, built without a hub.

    Args:
        vision_cfg: as in open_clip's own files: a ViT (image_size, patch_size, width, head_width, layers) or
            timm_model_name with image_size, timm_pool, timm_proj.
        embed_dim: features of CLIP's space, which its last projection leads to (not used here, but part of it).
        layer: as VisionTower.
        quick_gelu: OpenAI's x sigmoid(1.702 x) in place of the GELU; their weights need it.
        preprocess: as VisionTower.
        trainable: as VisionTower.

    Raises:
        ValueError: open_clip refuses it.
        ImportError: open_clip is not installed.
    """
    try:
        from open_clip import CustomTextCLIP
    except ImportError as error:
        raise ImportError(INSTALL) from error
    text_cfg = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}  # thrown away
    try:
        visual = CustomTextCLIP(embed_dim, dict(vision_cfg), text_cfg, quick_gelu=quick_gelu).visual
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"vision_cfg={vision_cfg}: open_clip cannot build it: {error}") from error
    config = {"embed_dim": embed_dim, "vision_cfg": dict(vision_cfg), "quick_gelu": quick_gelu}
    return VisionTower(visual, layer, config, preprocess, trainable)
