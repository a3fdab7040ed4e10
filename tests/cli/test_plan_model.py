import re

import pytest

from lightning_gpt.cli import main
from lightning_gpt.nn import GPT
from lightning_gpt.nn.flops import forward_flops_per_token
from lightning_gpt.nn.presets import PRESETS


@pytest.mark.parametrize(
    ("preset", "lines"),
    [
        ("gpt2", ["layers              12", "124,439,808 (124.4 M)", "cache               36 KiB a token"]),
        ("llama3-8b", ["heads               32 of 128, key/value heads 8", "8,030,261,248", "128 KiB a token"]),
        ("mixtral-8x7b", ["32, 32 with experts", "8, 2 a token, 14336 wide", "46,702,792,704", "12,879,925,248"]),
        ("mistral-7b", ["window              4096 tokens in 32 layers", "7,241,732,096"]),
    ],
)
def test_what_a_preset_costs(preset, lines, capsys):
    main(["plan", "model", preset])
    text = capsys.readouterr().out
    for line in lines:
        assert line in text


def test_a_longer_context_costs_more_operations(capsys):
    shown = []
    for context in ("128", "1024"):
        main(["plan", "model", "gpt2", "--context", context])
        text = capsys.readouterr().out
        shown.append(float(re.search(r"forward +([\d.]+) MFLOP", text)[1]))
        expected = forward_flops_per_token(PRESETS["gpt2"], int(context)) / 1e6
        assert shown[-1] == pytest.approx(expected, rel=1e-3)
    assert shown[0] < shown[1]


def test_a_model_directory_is_planned_without_its_weights(tmp_path, capsys):
    from lightning_gpt.hub import save_model

    net = GPT(PRESETS["tiny-llama"])
    save_model(tmp_path / "model", net, None)
    (tmp_path / "model" / "model.safetensors").unlink()
    main(["plan", "model", str(tmp_path / "model")])
    assert f"{sum(p.numel() for p in net.parameters()):,}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["llama3-8"], "model=llama3-8 is neither a preset, did you mean llama3-8b"),
        (["gpt2", "--context", "2048"], "context=2048 must be between 1 and the model's block_size=1024"),
    ],
)
def test_mistakes_are_one_line(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "model", *args])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
