import json

import pytest
import torch

from lightning_gpt.cli import main
from lightning_gpt.hub import open_model

GPT2 = {"n_layer": 2}
LLAMA = {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "bias": False, "n_kv_head": 1}
OURS = {**LLAMA, "feed_forward": "relu2", "logit_softcap": 15.0}


@pytest.fixture(params=[GPT2, LLAMA], ids=["gpt2", "llama"])
def run(request, lightning_gpt):
    return lightning_gpt("fit", {"model": {"init_args": {"config": request.param}}})


@pytest.mark.parametrize("what", ["run", "runs", "best", "last"])
def test_an_exported_run_is_the_same_model_to_transformers(run, what, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    source = {
        "run": run,
        "runs": run.parent,
        "best": run / "checkpoints" / "best.ckpt",
        "last": run / "checkpoints" / "last.ckpt",
    }[what]
    main(["export", str(source), str(tmp_path / "out")])
    assert "transformers reads it" in capsys.readouterr().out
    net, tokenizer = open_model(run / "checkpoints" / f"{'last' if what == 'last' else 'best'}.ckpt")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([tokenizer.encode("to be or not to")])[:, :16]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, net(ids), rtol=0, atol=1e-4)
    read = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert read("to be né")["input_ids"] == tokenizer.encode("to be né")


def test_an_export_can_be_trained_on_and_talks(run, tmp_path, lightning_gpt, capsys):
    main(["export", str(run), str(tmp_path / "out")])
    again = lightning_gpt("fit", "--run.name", "again", "--model.init_from", tmp_path / "out")
    assert (again / "checkpoints" / "last.ckpt").exists()
    texts = []
    for model in (run, run.parent, run / "checkpoints" / "best.ckpt", tmp_path / "out"):
        capsys.readouterr()
        main(["generate", str(model), "--prompt", "to be", "--max_new_tokens", "30", "--json", "--seed", "3"])
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert len(texts[0]) > 5
    assert len(set(texts)) == 1


def test_what_transformers_has_no_class_for_is_still_ours(lightning_gpt, tmp_path, capsys):
    run = lightning_gpt("fit", {"model": {"init_args": {"config": OURS}}})
    main(["export", str(run), str(tmp_path / "out")])
    assert "lightning-gpt alone reads it" in capsys.readouterr().out
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(open_model(tmp_path / "out")[0](ids), open_model(run)[0](ids), rtol=0, atol=0)


def test_an_import_keeps_what_ends_a_text_and_the_chat_template(tmp_path):
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from lightning_gpt.text.byte import byte_tokenizer

    backend = byte_tokenizer(end_of_text=True)._with_special
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    names = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "pad_token": "<|im_end|>"}
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    theirs.chat_template = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
    theirs.save_pretrained(tmp_path / "theirs")
    shape = {"vocab_size": len(theirs), "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaForCausalLM(LlamaConfig(hidden_size=16, **shape)).save_pretrained(tmp_path / "theirs")
    GenerationConfig(eos_token_id=[256, theirs.eos_token_id]).save_pretrained(tmp_path / "theirs")

    main(["import", str(tmp_path / "theirs"), "--out", str(tmp_path / "ours")])
    _, tokenizer = open_model(tmp_path / "ours")
    assert tokenizer.eos_id == tokenizer.pad_id == theirs.eos_token_id
    assert tokenizer.end_ids == {256, theirs.eos_token_id}
    again = AutoTokenizer.from_pretrained(tmp_path / "ours")
    chat = [{"role": "user", "content": "to be"}]
    assert again.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(chat, tokenize=False)
    assert (again.eos_token, again.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert GenerationConfig.from_pretrained(tmp_path / "ours").eos_token_id == [256, theirs.eos_token_id]


def test_mistakes_are_one_line(lightning_gpt, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.ckpt").write_text("To be")
    for args in (
        ["generate", str(tmp_path / "empty")],
        ["generate", str(tmp_path / "nowhere.ckpt")],
        ["generate", str(tmp_path / "text.ckpt")],
        ["export", str(tmp_path / "text.ckpt"), "out"],
        ["generate", str(tmp_path / "empty"), "--temperatur", "1"],
        ["generate"],
        ["prepare", str(tmp_path / "nowhere.txt")],
        ["prepare", str(tmp_path / "empty")],
    ):
        with pytest.raises(SystemExit) as stop:
            main(args)
        assert stop.value.code == 2, args
        err = capsys.readouterr().err.strip().splitlines()
        assert err[-1].startswith("lightning-gpt: error: "), args
        assert len(err[-1]) < 400
        if "--temperatur" in args:
            assert "did you mean 'temperature'?" in err[-1]


def test_out_may_be_named(run, tmp_path, capsys):
    main(["export", str(run), "--out", str(tmp_path / "named")])
    main(["export", "--model", str(run), f"--out={tmp_path / 'both'}"])
    assert {path.name for path in tmp_path.glob("*/config.json")} == {"config.json"}
    assert (tmp_path / "named" / "model.safetensors").stat().st_mode & 0o044 == 0o044
    assert (tmp_path / "both" / "config.json").exists()


def test_an_upcycled_model_says_the_same_and_trains_on(lightning_gpt, tmp_path, capsys):
    dense = lightning_gpt("fit", {"model": {"init_args": {"config": LLAMA}}})
    main(["upcycle", str(dense), "--out", str(tmp_path / "experts"), "--moe.experts", "4", "--moe.top_k", "2"])
    assert "active)" in capsys.readouterr().out
    ids = torch.arange(10)[None]
    net, _ = open_model(tmp_path / "experts")
    with torch.no_grad():
        torch.testing.assert_close(net(ids), open_model(dense)[0](ids), rtol=0, atol=1e-5)
    moe = {"experts": 4, "top_k": 2}
    config = {"model": {"init_args": {"config": LLAMA | {"moe": moe}, "init_from": str(tmp_path / "experts")}}}
    again = lightning_gpt("fit", config, "--run.name", "again")
    assert (again / "checkpoints" / "last.ckpt").exists()


def test_upcycling_a_model_with_biases_is_refused(lightning_gpt, tmp_path, capsys):
    run = lightning_gpt("fit")
    with pytest.raises(SystemExit) as stop:
        main(["upcycle", str(run), str(tmp_path / "experts"), "--moe.experts", "4"])
    assert stop.value.code == 2
    assert "the model has biases (bias=True), experts have none" in capsys.readouterr().err


def test_a_vision_language_model_goes_there_and_back(tiny_llava, tmp_path, capsys):
    from transformers import LlavaForConditionalGeneration

    from lightning_gpt.hub.llava_opening import open_llava
    from lightning_gpt.nn.vision_language import expand_image_tokens

    LlavaForConditionalGeneration.from_pretrained(tiny_llava).save_pretrained(tmp_path / "theirs")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / "theirs" / name).write_bytes((tiny_llava / name).read_bytes())
    main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours")])
    main(["export", str(tmp_path / "ours"), str(tmp_path / "again"), "--dtype", "float32"])
    assert capsys.readouterr().out.count("LlavaForConditionalGeneration.from_pretrained") == 2
    peer = LlavaForConditionalGeneration.from_pretrained(tmp_path / "again").eval()
    model, tokenizer = open_llava(tmp_path / "ours")
    ids = torch.tensor([expand_image_tokens([1, tokenizer.special_tokens["<image>"], 2, 3], 257, 4)])
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(
            peer(input_ids=ids, pixel_values=pixels).logits, model(ids, pixels), rtol=0, atol=1e-4
        )
        torch.testing.assert_close(model(ids, pixels), open_llava(tiny_llava)[0](ids, pixels), rtol=0, atol=1e-5)
