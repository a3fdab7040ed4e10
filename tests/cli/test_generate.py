import io
import json

import pytest
import torch

from lightning_gpt.cli.generate import generate_command
from lightning_gpt.cli.transfer import export_command, import_command
from lightning_gpt.hub import load_model, save_model
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.text.byte import byte_tokenizer

SHAPE = {"vocab_size": 257, "block_size": 24, "n_layer": 1, "n_head": 2, "n_embd": 16}


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    save_model(tmp_path / "model", GPT(GPTConfig(**SHAPE)), byte_tokenizer(end_of_text=True))
    return str(tmp_path / "model")


def test_streamed_and_collected_text_are_the_same(model, capsys):
    generate_command(model, "To be", max_new_tokens=30)
    streamed = capsys.readouterr().out
    assert streamed.startswith("To be")
    generate_command(model, ["To be"], max_new_tokens=30, json=True)
    (line,) = capsys.readouterr().out.splitlines()
    about = json.loads(line)
    assert about["prompt"] + about["text"] + "\n" == streamed
    assert about["tokens"] <= 30


def test_standard_input_is_a_prompt(model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("from stdin"))
    generate_command(model, "-", max_new_tokens=3)
    assert capsys.readouterr().out.startswith("from stdin")


def test_a_file_of_prompts_gives_one_line_each(model, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("one\n\nthree and more\n", encoding="utf-8")
    generate_command(model, prompt_file=str(tmp_path / "prompts.txt"), max_new_tokens=5, num_samples=2, json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["one", "one", "", "", "three and more", "three and more"]
    assert lines[0]["text"] != lines[1]["text"]


def test_several_samples_are_set_apart(model, capsys):
    generate_command(model, "To be", max_new_tokens=5, num_samples=2)
    out = capsys.readouterr().out
    assert "--- 1 of 2 (length) ---\nTo be" in out
    assert "--- 2 of 2 (length) ---\nTo be" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "a", "prompt_file": "b"}, "exclude each other"),
        ({"prompt_file": "/nowhere/prompts.txt"}, "does not exist"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"prompt": "x" * 30, "overflow": "refuse"}, "exceed block_size=24"),
        ({"device": "nonsense"}, "device='nonsense'"),
        ({"dtype": "float16", "device": "cpu"}, "dtype=float16"),
    ],
)
def test_bad_input_is_one_line(model, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        generate_command(model, **options)
    assert "\n" not in str(error.value)


def test_a_model_without_tokenizer_says_so(tmp_path):
    save_model(tmp_path / "bare", GPT(GPTConfig(**SHAPE)), None)
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        generate_command(str(tmp_path / "bare"))


def test_export_says_who_can_read_it(model, tmp_path, capsys):
    export_command(model, str(tmp_path / "out"), dtype="bfloat16")
    assert "AutoModelForCausalLM" in capsys.readouterr().out
    assert load_model(tmp_path / "out")[0].head.weight.dtype == torch.bfloat16
    save_model(tmp_path / "own", GPT(GPTConfig(**SHAPE, logit_softcap=9.0)), byte_tokenizer())
    export_command(str(tmp_path / "own"), str(tmp_path / "out"))
    assert "transformers has no class for logit_softcap=9" in capsys.readouterr().out


def test_import(model, tmp_path, capsys):
    import_command(model, str(tmp_path / "imported"))
    assert "parameters" in capsys.readouterr().out
    assert load_model(tmp_path / "imported")[0].config == load_model(model)[0].config


@pytest.fixture
def picture(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    Image.new("RGB", (40, 50), (200, 100, 0)).save(tmp_path / "orange.png")
    return str(tmp_path / "orange.png")


def continued(model, prompt, picture, capsys, **options):
    generate_command(str(model), prompt, image=picture, max_new_tokens=12, temperature=0, json=True, **options)
    return [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]


def test_text_after_a_picture_is_that_of_transformers(tiny_llava, picture, capsys):
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    peer = LlavaForConditionalGeneration.from_pretrained(tiny_llava).eval()
    processor = AutoProcessor.from_pretrained(tiny_llava)
    prompts = ["What?", "Look: <image> there"]
    expected = []
    for text in ("<image>\nWhat?", prompts[1]):
        inputs = processor(images=Image.open(picture), text=text, return_tensors="pt")
        new = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": 256}
        made = peer.generate(**inputs, **new, suppress_tokens=[257])[0, inputs["input_ids"].shape[1] :]
        expected.append(processor.tokenizer.decode(made, skip_special_tokens=True))
    assert continued(tiny_llava, prompts, picture, capsys) == expected
    assert continued(tiny_llava, ["What?"], picture, capsys, num_samples=2) == [expected[0]] * 2
    generate_command(str(tiny_llava), "What?", image=picture, max_new_tokens=12, temperature=0)
    assert capsys.readouterr().out == f"What?{expected[0]}\n"


def test_a_vision_language_model_continues_text_too(tiny_llava, picture, capsys):
    (blind,) = continued(tiny_llava, "What?", None, capsys)
    assert "<image>" not in blind
    assert continued(tiny_llava, "What?", picture, capsys) != [blind]
    generate_command(str(tiny_llava), "What?", image=picture, max_new_tokens=500, temperature=0, json=True)
    about = json.loads(capsys.readouterr().out)
    assert about["finish"] == "length"
    assert about["tokens"] == 96 - len("\nWhat?") - 4 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "<image> <image>"}, "has 2 <image>, but --image is one picture"),
        ({"prompt": "x" * 100}, "exceed block_size=96"),
        ({"image": "/nowhere.png"}, "/nowhere.png cannot be read"),
        ({"model": "text"}, "--image needs a vision-language model"),
    ],
)
def test_what_cannot_be_seen_is_refused(options, message, tiny_llava, model, picture):
    given = {"model": str(tiny_llava), "prompt": "a", "image": picture} | options
    given["model"] = model if given["model"] == "text" else given["model"]
    with pytest.raises(ValueError, match=message):
        generate_command(**given)


@pytest.fixture
def smaller(tmp_path):
    torch.manual_seed(1)
    save_model(tmp_path / "smaller", GPT(GPTConfig(**SHAPE)), byte_tokenizer(end_of_text=True))
    return str(tmp_path / "smaller")


@pytest.fixture
def deep(tmp_path):
    torch.manual_seed(0)
    save_model(tmp_path / "deep", GPT(GPTConfig(**{**SHAPE, "n_layer": 3})), byte_tokenizer(end_of_text=True))
    return str(tmp_path / "deep")


def test_drafts_change_no_text_and_are_reported(deep, smaller, capsys):
    generate_command(deep, "To be, or not to be", max_new_tokens=40, top_k=2)
    expected = capsys.readouterr()
    assert not expected.err
    for draft in ("ngram", "early_exit:1", smaller):
        generate_command(deep, "To be, or not to be", max_new_tokens=40, top_k=2, draft=draft, stats=True)
        given = capsys.readouterr()
        assert given.out == expected.out
        assert "40 tokens in " in given.err
        assert "tokens/s; drafts: " in given.err
    generate_command(deep, "To be", max_new_tokens=3, stats=True, json=True)
    assert "drafts" not in capsys.readouterr().err


def test_drafts_that_cannot_be(deep, tmp_path):
    other = tmp_path / "other"
    save_model(other, GPT(GPTConfig(**{**SHAPE, "vocab_size": 256})), byte_tokenizer())
    for draft, message in (
        ("early_exit", "needs a number of layers"),
        ("early_exit:3", "layers=3 must be from 1 to 2"),
        (str(other), "another tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            generate_command(deep, "To be", draft=draft)
    with pytest.raises(ValueError, match="draft_tokens=0"):
        generate_command(deep, "To be", draft="ngram", draft_tokens=0)
