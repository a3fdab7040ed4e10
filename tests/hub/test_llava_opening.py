import json
import shutil

import pytest
import torch

from lightning_gpt.hub import open_model
from lightning_gpt.hub.clip_directory import ClipModel
from lightning_gpt.hub.llava import load_llava
from lightning_gpt.hub.llava_opening import image_token, is_vision_language, open_any_model, open_llava
from lightning_gpt.nn.pixels import to_pixels
from lightning_gpt.text.byte import byte_tokenizer

Image = pytest.importorskip("PIL.Image")
IDS = torch.tensor([[1, 257, 257, 257, 257, 2, 3]])
PIXELS = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_directory_and_its_files(tiny_llava):
    expected = load_llava(tiny_llava)[0](IDS, PIXELS)
    for path in (tiny_llava, str(tiny_llava), tiny_llava / "config.json", tiny_llava / "model.safetensors"):
        assert is_vision_language(path)
        model, tokenizer = open_llava(path)
        assert torch.equal(model(IDS, PIXELS), expected)
        assert not model.training
        assert image_token(model, tokenizer) == "<image>"
    model, _ = open_llava(tiny_llava, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_either_kind_is_told_apart(tiny_llava, tiny_model):
    net, tokenizer, vision = open_any_model(tiny_llava)
    assert net is vision.net
    assert tokenizer.special_tokens["<image>"] == 257
    net, _, vision = open_any_model(tiny_model)
    assert vision is None
    assert net.config == open_model(tiny_model)[0].config
    assert not is_vision_language(tiny_model)


def test_the_wrong_door_says_which_is_the_right_one(tiny_llava, tiny_model, tmp_path):
    for path in (tiny_llava, tiny_llava / "config.json"):
        with pytest.raises(ValueError, match=r"is a vision-language model .*chat --image.*import and export"):
            open_model(path)
    with pytest.raises(ValueError, match="is no vision-language model, it cannot be shown pictures"):
        open_llava(tiny_model)
    for opener in (open_llava, open_any_model):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            opener(tmp_path / "nowhere")


def test_a_hub_name_is_looked_up_in_the_cache(tiny_llava, tmp_path, monkeypatch):
    import huggingface_hub

    revision = "0" * 40
    home = tmp_path / "models--someone--llava"
    shutil.copytree(tiny_llava, home / "snapshots" / revision)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert open_llava("someone/llava")[0].image_token_id == 257
    assert open_any_model("someone/llava")[2] is not None
    with pytest.raises(ValueError, match="is a vision-language model"):
        open_model("someone/llava")


def test_a_tokenizer_without_the_token_is_refused(tiny_llava):
    with pytest.raises(ValueError, match="no special token of id 257"):
        image_token(open_llava(tiny_llava)[0], byte_tokenizer(end_of_text=True))


def test_pixels_are_those_of_transformers_and_of_our_clip(tiny_llava):
    transformers = pytest.importorskip("transformers")
    pictures = [Image.new("RGB", size, colour) for size, colour in (((40, 50), (200, 100, 0)), ((28, 90), (0, 9, 255)))]
    model, _ = open_llava(tiny_llava)
    pixels = to_pixels(pictures, model.tower.preprocess)
    processor = transformers.AutoProcessor.from_pretrained(tiny_llava)
    expected = processor(images=pictures, text="<image><image>", return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)

    class Towers(torch.nn.Module):
        logit_scale = torch.nn.Parameter(torch.ones(()))

        def encode_image(self, pixels, normalize):
            return pixels

    text = {"text_cfg": {"context_length": 8}}
    assert torch.equal(ClipModel(Towers(), text, model.tower.preprocess).embed_pictures(pictures), pixels)


def test_our_own_format_is_opened_too(tiny_llava, tmp_path):
    from lightning_gpt.hub.llava import save_llava
    from lightning_gpt.nn.vision_language import Projector, VisionLanguageModel

    model, tokenizer = open_llava(tiny_llava)
    linear = VisionLanguageModel(model.net, model.tower, Projector(32, 48, "linear"), 257)
    assert save_llava(tmp_path / "own", linear, tokenizer) == "lightning_gpt_llava"
    assert json.loads((tmp_path / "own/config.json").read_text())["model_type"] == "lightning_gpt_llava"
    assert is_vision_language(tmp_path / "own")
    assert open_any_model(tmp_path / "own")[2].projector.kind == "linear"


@pytest.mark.parametrize("learn", ["projector", "all"])
def test_a_run_is_opened_too(learn, tiny_llava, post_train, as_lines, tmp_path, capsys):
    Image.new("RGB", (40, 50), (200, 100, 0)).save(tmp_path / "orange.png")
    rows = as_lines(
        tmp_path / "rows.jsonl",
        [
            {"image": "orange.png", "messages": [{"role": "user", "content": "<image>\nWhat?"}, answer]}
            for answer in [{"role": "assistant", "content": "orange"}] * 4
        ],
    )
    model = {"init_from": str(tiny_llava), "learn": learn}
    run = post_train("LLaVA", "VisionInstructionData", model, {"train": str(rows), "val": str(rows)})
    started, _ = open_llava(tiny_llava)
    for path in (run, run.parent, run / "checkpoints" / "best.ckpt"):
        assert is_vision_language(path)
        opened, tokenizer, vision = open_any_model(path)
        assert image_token(vision, tokenizer) == "<image>"
        assert not torch.equal(vision.projector[0].weight, started.projector[0].weight)
        learnt = not torch.equal(opened.token_embedding.weight, started.net.token_embedding.weight)
        assert learnt == (learn == "all")
        with pytest.raises(ValueError, match="is a vision-language model"):
            open_model(path)
