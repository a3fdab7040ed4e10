"""Image towers by name: pretrained ones of a package, of our CLIP models, and of open_clip's hub."""

from __future__ import annotations

from lightning_gpt.nn.vision_tower import VisionTower

EFFICIENTNET = "efficientnet-lite0"


def open_tower(name: str, layer: int = -2, image_size: int | None = None, trainable: bool = False) -> VisionTower:
    """A tower whose patch features a language model can read.

    Args:
        name: efficientnet-lite0 (ImageNet's weights, of a package), a CLIP directory, run or checkpoint, or a name of
            open_clip with a tag of its weights, "ViT-L-14-336:openai".
        layer: as VisionTower.
        image_size: pixels of a side, for convolutional towers; None = its own.
        trainable: whether it learns.

    Raises:
        FileNotFoundError, ValueError: no such tower or layer, or a size for a tower with positions.
        ImportError: open_clip is not installed.
    """
    if name == EFFICIENTNET:
        from lightning_gpt.hub.efficientnet import efficientnet_lite0_tower

        tower = efficientnet_lite0_tower(layer, trainable)
    else:
        from lightning_gpt.hub.clip_directory import open_clip_model

        clip = open_clip_model(name)
        tower = VisionTower(clip.net.visual, layer, clip.config, clip.preprocess, trainable)
    if image_size is None or tower.image_size == (image_size, image_size):
        return tower
    if hasattr(tower.visual, "transformer"):
        raise ValueError(
            f"model.image_size={image_size}: this tower's positions are made for {tower.image_size[0]} pixels, leave "
            "it out"
        )
    tower.visual.image_size = (image_size, image_size)
    config = {**tower.config, "vision_cfg": {**tower.config["vision_cfg"], "image_size": image_size}}
    return VisionTower(tower.visual, layer, config, tower.preprocess, trainable)
