import re

import pytest

from lightning_gpt.cli import main
from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn.flops import training_flops_per_token


@pytest.fixture
def plan_time(clean_process, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *options: main(["plan", "time", "-c", str(recipe), *options])


def test_the_table_is_arithmetic(plan_time, capsys):
    """FLOPs of all tokens over what two A100 do at half their peak, at 3 dollars an hour and device."""
    size = ["--model.config.n_layer", "2", "--model.config.n_head", "2", "--model.config.n_embd", "64"]
    size += ["--data.batch_size", "4", "--data.block_size", "32", "--trainer.accumulate_grad_batches", "3"]
    machine = ["--gpus", "2xA100", "--utilisation", "0.5", "--price", "3", "--vocab_size", "1000"]
    plan_time(*size, *machine, "--steps", "1000000")
    shown = capsys.readouterr().out
    tokens = 1_000_000 * 4 * 32 * 3
    flops = training_flops_per_token(GPTConfig(1000, 32, 2, 2, 64), 32) * tokens
    seconds = flops / (2 * 312e12 * 0.5)
    assert f"1,000,000 steps, {tokens:,} tokens" in shown
    assert float(re.search(r"FLOPs +(\S+) ", shown)[1]) == pytest.approx(flops, rel=1e-3)
    assert float(re.search(r"\(([\d,.]+) s\)", shown)[1].replace(",", "")) == pytest.approx(seconds, abs=0.1)
    assert float(re.search(r"cost +([\d.]+)", shown)[1]) == pytest.approx(seconds / 3600 * 2 * 3, abs=0.01)


def test_this_machine_is_calibrated(plan_time, capsys):
    plan_time("--calibrate", "8", "--steps", "100", "--trainer.val_check_interval", "30", "--price", "1")
    shown = capsys.readouterr().out
    assert "over 8 steps on this machine" in shown and ", 4 of them" in shown  # at 30, 60, 90 and the end
    step = float(re.search(r"a step +(\S+) s", shown)[1])
    whole = float(re.search(r"\(([\d,.]+) s\)", shown)[1].replace(",", ""))
    assert whole > 100 * step * 0.999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "steps=0 must be at least 1"),
        (["--price", "-1"], "price=-1 must not be negative"),
        (["--gpus", "8xA1000"], "accelerator 'A1000' is unknown, did you mean a100"),
        (["--gpus", "A100", "--utilisation", "1.5"], "utilisation=1.5 is no share"),
        (["--gpus", "A100", "--trainer.devices", "auto"], "trainer.devices must be a number"),
        (["--gpus", "A100", "--data.data_dir", "nowhere"], "nowhere is not prepared here: give --vocab_size"),
        (["--data.batchsize", "2"], "'batchsize' is not accepted - did you mean 'batch_size'"),
    ],
)
def test_mistakes_are_told(plan_time, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        plan_time(*options)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_without_a_configuration(clean_process, capsys):
    with pytest.raises(SystemExit):
        main(["plan", "time"])
    assert "no configuration: give -c" in capsys.readouterr().err
