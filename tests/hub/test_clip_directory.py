"""CLIP directories are open_clip's."""

import pytest
import torch
from PIL import Image

from lightning_gpt.hub.clip_directory import ClipModel, is_clip, open_clip_model, save_clip
from lightning_gpt.nn.clip import build_clip, prompt_ensemble, zero_shot_weights
from lightning_gpt.nn.clip_config import ClipConfig, TextConfig, VisionConfig
from lightning_gpt.text.byte import byte_tokenizer

PREPROCESS = {"size": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]}
SMALL = ClipConfig(
    16, VisionConfig(16, 8, 32, 2, 16), TextConfig(context_length=12, vocab_size=49408, width=32, heads=2, layers=1)
)


@pytest.fixture
def clip() -> ClipModel:
    torch.manual_seed(0)
    return ClipModel(build_clip(SMALL.to_open_clip()).eval(), SMALL.to_open_clip(), PREPROCESS)


def test_open_clip_reads_what_is_written(clip, tmp_path):
    import open_clip

    save_clip(tmp_path / "model", clip)
    assert is_clip(tmp_path / "model") and not is_clip(tmp_path)
    theirs, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'model'}")
    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    with torch.no_grad():
        image = theirs.eval().encode_image(transform(picture)[None], normalize=True)
        text = theirs.encode_text(open_clip.get_tokenizer(f"local-dir:{tmp_path / 'model'}")(["a cat"]), normalize=True)
    ours = open_clip_model(tmp_path / "model")
    assert torch.allclose(image, ours.embed_pictures([picture]), atol=1e-6)
    assert torch.allclose(text, ours.embed_texts(["a cat"]), atol=1e-6)
    assert ours.fingerprint == clip.fingerprint
    save_clip(tmp_path / "model", ours)  # replaces it
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"other"):
        save_clip(tmp_path / "other", ours)


def test_a_tokenizer_of_ours_goes_with_the_towers(tmp_path):
    tokenizer = byte_tokenizer(end_of_text=True)
    text = TextConfig(12, 257, 32, 2, 1, pool_type="eos", eos_id=tokenizer.eos_id)
    config = ClipConfig(16, SMALL.vision_cfg, text).to_open_clip()
    clip = ClipModel(build_clip(config).eval(), config, PREPROCESS, tokenizer)
    save_clip(tmp_path / "model", clip)
    again = open_clip_model(tmp_path / "model")
    assert torch.equal(clip.embed_texts(["red", "blue"]), again.embed_texts(["red", "blue"]))
    assert clip.tokenize(["red"])[0].tolist() == [*tokenizer.encode("red"), tokenizer.eos_id, *[0] * 8]
    assert clip.tokenize.length("red") == 4 and len(clip.tokenize(["a longer text than that"])[0]) == 12


def test_zero_shot_weights_equal_open_clip(clip):
    from open_clip import SIMPLE_IMAGENET_TEMPLATES, build_zero_shot_classifier

    names = ["cat", "dog", "house"]
    theirs = build_zero_shot_classifier(clip.net, clip.tokenize, names, SIMPLE_IMAGENET_TEMPLATES)
    ours = zero_shot_weights(clip.net, clip.tokenize, names, prompt_ensemble("simple"))
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert len(prompt_ensemble("openai")) == 80
    for templates, message in ((["a photo"], "has no {}"), (prompt_ensemble("names"), "no labels")):
        with pytest.raises(ValueError, match=message):
            zero_shot_weights(clip.net, clip.tokenize, names if "has" in message else [], templates)


def test_published_names_give_their_shape_or_say_why_not():
    opened = open_clip_model("ViT-S-32-alt")
    assert opened.preprocess["size"] in (224, (224, 224)) and opened.tokenize.context_length == 77
    with pytest.raises(FileNotFoundError, match=r"ViT-Q is neither"):
        open_clip_model("ViT-Q")


def test_damaged_directories_are_named(clip, tmp_path):
    save_clip(tmp_path / "model", clip)
    (tmp_path / "model" / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no open_clip_model.safetensors"):
        open_clip_model(tmp_path / "model")
