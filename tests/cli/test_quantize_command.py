import json

import pytest
import torch

from lightning_gpt.cli import main
from lightning_gpt.hub import open_model
from lightning_gpt.hub.quantized_directory import is_quantized
from lightning_gpt.nn.flops import parameters
from lightning_gpt.nn.quantized_linear import quantized_layers


@pytest.fixture
def here(clean_process, tmp_path):
    return tmp_path


def refused(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["quantize", *map(str, args)])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("lightning-gpt: error: ")
    return error


SMALL = ("--samples", "8", "--tokens", "32")


@pytest.mark.parametrize(
    ("options", "bits", "act_bits"),
    [
        (("--method", "rtn"), 8, None),
        (("--method", "gptq", "--bits", "4", *SMALL), 4, None),
        (("--method", "awq", "--bits", "4", "--group_size", "32", *SMALL), 4, None),
        (("--method", "smoothquant", "--head", *SMALL), 8, 8),
        (("--method", "llm_int8"), None, None),
        (("--method", "nf4", *SMALL, "--calibration", "text.txt"), None, None),
    ],
)
def test_a_model_is_quantized_reported_and_read_again(options, bits, act_bits, tiny_model, here, capsys):
    (here / "text.txt").write_text("It is a truth universally acknowledged, that a single man. " * 20)
    main(
        ["quantize", str(tiny_model), "--out", "small", *options, "--evaluate", "text.txt", "--evaluate_tokens", "200"]
    )
    said = capsys.readouterr().out
    assert "bytes " in said
    assert "perplexity " in said
    assert "attention.qkv: error of" in said
    assert "transformers reads it" in said
    report = json.loads((here / "small" / "quantization.json").read_text())
    assert report["method"] == options[1]
    assert report["settings"]["group_size"] == {"gptq": 64, "awq": 32}.get(options[1])
    assert report["bytes"]["after"] < 0.7 * report["bytes"]["before"]
    assert report["perplexity"]["after"] == pytest.approx(report["perplexity"]["before"], rel=0.2)
    assert len(report["layers"]) == 8 + ("--head" in options)
    main(["inspect", "small"])
    inspected = capsys.readouterr().out
    if bits:
        assert "blocks.0.attention.qkv" in inspected
        assert f"total {parameters(open_model(tiny_model)[0].config):,} parameters" in inspected
    net, _ = open_model("small")
    layouts = {(layer.bits, layer.act_bits) for layer in quantized_layers(net).values()}
    assert layouts == ({(bits, act_bits)} if bits else set())
    assert is_quantized(net)
    main(["generate", "small", "--prompt", "It is", "--max_new_tokens", "5", "--json", "--temperature", "0"])
    assert json.loads(capsys.readouterr().out)["tokens"] == 5
    main(["evaluate", "small", "--text", "text.txt", "--dtype", "stored"])
    assert "bits per byte" in capsys.readouterr().out


def test_a_quantized_model_is_exported_as_it_is(tiny_model, here, capsys):
    main(["quantize", str(tiny_model), "small", "--bits", "4"])
    main(["export", "small", "again"])
    assert "parameters, model_type llama" in capsys.readouterr().out
    one, other = open_model("small")[0], open_model("again")[0]
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("method", ["bf16", "fp16"])
def test_half_types(method, tiny_model, here, capsys):
    main(["quantize", str(tiny_model), "--method", method, "--out", "half"])
    assert "(50.0%)" in capsys.readouterr().out
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[method]
    assert open_model("half")[0].token_embedding.weight.dtype == dtype


def test_training_refuses_and_dequantizing_helps(tiny_model, here, answer_rows, post_train, capsys):
    main(["quantize", str(tiny_model), "small", "--bits", "4"])
    rows = {"train": str(answer_rows), "val": str(answer_rows), "max_length": 64}
    with pytest.raises(SystemExit) as stop:
        post_train("SFT", "InstructionData", {"init_from": "small"}, rows)
    assert stop.value.code == 2
    assert "--method dequantize --out" in capsys.readouterr().err
    main(["quantize", "small", "--method", "dequantize", "--out", "plain"])
    small, plain = open_model("small")[0], open_model("plain")[0]
    assert not quantized_layers(plain)
    ids = torch.arange(60)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids), small(ids), rtol=1e-4, atol=1e-4)
    assert (post_train("SFT", "InstructionData", {"init_from": "plain"}, rows) / "checkpoints").exists()


def test_pretraining_refuses_too(tiny_model, here, corpus, lightning_gpt, capsys):
    run = lightning_gpt("fit")
    main(["quantize", str(run), "small"])
    with pytest.raises(SystemExit):
        lightning_gpt("fit", "--model.init_from", "small")
    assert "model.init_from=small is quantized" in capsys.readouterr().err


def test_bad_input_is_one_line(tiny_model, tiny_llava, here, capsys):
    (here / "short.txt").write_text("too short")
    assert "nearest" not in refused([tiny_model, "out", "--method", "gptg"], capsys)
    error = refused([tiny_model, "out", "--bits", "4", "--group_size", "48"], capsys)
    assert "group_size=48 does not divide the 64 inputs of blocks.0.attention.qkv: use 32 or 64" in error
    error = refused([tiny_model, "out", "--method", "gptq", "--calibration", "short.txt"], capsys)
    assert "calibration=short.txt is too short: 10 tokens" in error
    assert "samples=128 of tokens=64 need 8,192" in error
    assert "expected" in refused([tiny_model, "out", "--bits", "3"], capsys)
    assert "is not quantized" in refused([tiny_model, "out", "--method", "dequantize"], capsys)
    assert "vision-language" in refused([tiny_llava, "out"], capsys)
    main(["quantize", str(tiny_model), "small"])
    assert "quantized already: --method dequantize first" in refused(["small", "out"], capsys)
    (here / "letters").mkdir()
    (here / "letters" / "mother.txt").write_text("dear")
    assert "no model directory" in refused([tiny_model, "letters"], capsys)
    assert "would be lost" in refused([tiny_model, tiny_model], capsys)
    assert not (here / "out").exists()
