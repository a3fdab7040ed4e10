import pytest
import torch

from lightning_gpt.cli import main
from lightning_gpt.cli.inspect import module_table, shorten
from lightning_gpt.cli.position_plots import draw_positions
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.flops import forward_flops_per_token, parameters
from lightning_gpt.nn.presets import PRESETS


@pytest.mark.parametrize("preset", ["tiny-gpt2", "tiny-llama", "tiny-mixtral"])
def test_the_table_adds_up_to_the_network(preset):
    config = PRESETS[preset]
    rows = module_table(GPT(config), config.block_size)
    assert sum(row[3] for row in rows) == parameters(config)
    assert sum(row[4] for row in rows) == pytest.approx(forward_flops_per_token(config, config.block_size))


def test_equal_blocks_are_one_line():
    with torch.device("meta"):
        net = GPT(GPTConfig(n_layer=4, window=8, window_pattern="SSL", block_size=32, n_embd=32, n_head=2))
    shown = {row[0]: row[2] for row in shorten(module_table(net, 32))}
    assert shown["blocks.0.attention scores"] == "8 keys"
    assert shown["blocks.1"] == "as blocks.0"
    assert shown["blocks.2.attention scores"] == "32 keys"
    assert shown["blocks.3.attention scores"] in ("8 keys", "32 keys")


def test_a_preset_of_any_size_is_shown_without_its_weights(tmp_path, capsys):
    main(["inspect", "llama3-70b", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert "total 70,553,706,496 parameters" in text
    assert "blocks.1 to 79" in text
    assert (tmp_path / "positions.png").stat().st_size > 10_000


def test_a_trained_model_shows_where_it_looks(lightning_gpt, tmp_path, capsys):
    run = lightning_gpt("fit")
    main(["inspect", str(run), "--out", str(tmp_path / "pictures"), "--text", "to be or not"])
    assert "drawn:" in capsys.readouterr().out
    for name in ("positions.png", "attention.png"):
        assert (tmp_path / "pictures" / name).stat().st_size > 10_000


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "rotary", "alibi"])
def test_every_kind_of_position_has_its_picture(kind):
    figure = draw_positions(GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=16, position=kind)))
    assert all(axes.has_data() for axes in figure.axes)


def test_no_positions_no_picture():
    assert draw_positions(GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, position="none"))) is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gpt2", "--text", "x", "--out", "y"], "text='x' needs a trained model with a tokenizer: gpt2 has none"),
        (["nowhere.ckpt"], "nowhere.ckpt does not exist"),
    ],
)
def test_mistakes_are_one_line(args, message, capsys, clean_process):
    with pytest.raises(SystemExit) as stop:
        main(["inspect", *args])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
