"""Shapes of CLIP's towers: the settings of open_clip that matter, explained and checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class VisionConfig:
    """The image tower: a vision transformer (Dosovitskiy et al., 2021), or any network of timm."""

    image_size: int = 224
    """Pixels of a side."""
    patch_size: int = 16
    """Pixels of a patch's side; the transformer sees (image_size / patch_size)^2 of them."""
    width: int = 768
    """Features of a patch."""
    layers: int = 12
    """Blocks."""
    head_width: int = 64
    """Features of an attention head."""
    mlp_ratio: float = 4.0
    """Width of the feed-forward layer relative to `width`."""
    patch_dropout: float = 0.0
    """Share of the patches that is left out while training (FLIP, Li et al., 2023: 0.5 halves the work)."""
    timm_model_name: str | None = None
    """A network of timm in place of the transformer, such as resnet18 or tf_efficientnet_lite0; of the fields above
    only image_size counts then."""
    timm_pool: str = "avg"
    """How its map of features becomes one vector."""
    timm_proj: str = "linear"
    """How that comes into the shared space: linear or mlp."""

    def __post_init__(self) -> None:
        if self.timm_model_name is None:
            if self.image_size % self.patch_size:
                raise ValueError(
                    f"vision_cfg.image_size={self.image_size} is no multiple of patch_size={self.patch_size}"
                )
            if self.width % self.head_width:
                raise ValueError(f"vision_cfg.width={self.width} is no multiple of head_width={self.head_width}")
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"vision_cfg.patch_dropout={self.patch_dropout} is a share below 1")

    def to_open_clip(self) -> dict[str, Any]:
        """As open_clip's vision_cfg."""
        if self.timm_model_name is None:
            return {key: value for key, value in asdict(self).items() if not key.startswith("timm_")}
        return {key: value for key, value in asdict(self).items() if key.startswith(("timm_", "image_size"))}


@dataclass(frozen=True)
class TextConfig:
    """The text tower: a causal transformer that reads a caption's last token."""

    context_length: int = 77
    """Tokens of a caption; longer ones lose their end."""
    vocab_size: int = 49408
    """Of the tokenizer; 49,408 is that of CLIP's own."""
    width: int = 512
    """Features of a token."""
    heads: int = 8
    """Attention heads."""
    layers: int = 12
    """Blocks."""
    mlp_ratio: float = 4.0
    """Width of the feed-forward layer relative to `width`."""
    pool_type: Literal["argmax", "eos", "last"] = "argmax"
    """Which token speaks for the caption: argmax = that with the largest id, CLIP's end-of-text; eos = eos_id."""
    eos_id: int = 2
    """End-of-text, for pool_type eos."""
    pad_id: int = 0
    """What fills captions up."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"text_cfg.width={self.width} is no multiple of heads={self.heads}")
        if self.context_length < 3:
            raise ValueError(f"text_cfg.context_length={self.context_length} leaves no room for a word")

    def to_open_clip(self) -> dict[str, Any]:
        """As open_clip's text_cfg; what is its default is left out, since versions differ in what they know."""
        fresh = asdict(type(self)())
        optional = ("pool_type", "eos_id", "pad_id")
        return {key: value for key, value in asdict(self).items() if key not in optional or value != fresh[key]}


@dataclass(frozen=True)
class ClipConfig:
    """Both towers."""

    embed_dim: int = 512
    """Features of the space in which pictures and texts meet."""
    vision_cfg: VisionConfig = field(default_factory=VisionConfig)
    """The image tower."""
    text_cfg: TextConfig = field(default_factory=TextConfig)
    """The text tower."""
    quick_gelu: bool = False
    """x * sigmoid(1.702 x) for GELU, as OpenAI's weights want it."""

    def to_open_clip(self) -> dict[str, Any]:
        """As open_clip's model_cfg."""
        quick = {"quick_gelu": True} if self.quick_gelu else {}
        vision, text = self.vision_cfg.to_open_clip(), self.text_cfg.to_open_clip()
        return {"embed_dim": self.embed_dim, "vision_cfg": vision, "text_cfg": text, **quick}
