"""Runs made sick on purpose are told from each other, and healthy ones are left alone."""

import json
from pathlib import Path

import pytest
import yaml

from lightning_gpt.callbacks.diagnosis import read_diagnosis
from lightning_gpt.cli import main
from lightning_gpt.cli.diagnose import diagnose_command
from lightning_gpt.data.prepare import prepare

BASE = {
    "run": {"tensorboard": False},
    "model": {
        "class_path": "lightning_gpt.tasks.Pretraining",
        "init_args": {
            "config": {
                "n_layer": 2,
                "n_head": 2,
                "n_embd": 64,
                "bias": False,
                "position": "rotary",
                "norm": "rmsnorm",
            },
            "optimizer": {"class_path": "lightning_gpt.optim.AdamW", "init_args": {"lr": 5e-3}},
            "schedule": {"class_path": "lightning_gpt.optim.Cosine", "init_args": {"warmup_steps": 10}},
        },
    },
    "data": {
        "class_path": "lightning_gpt.data.TokenData",
        "init_args": {"data_dir": "text", "batch_size": 8, "block_size": 64, "val_batch_size": 32},
    },
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 120,
        "log_every_n_steps": 5,
        "val_check_interval": 1000000,
        "limit_val_batches": 2,
    },
    "samples": {"tokens": 0},
    "curve": {"enabled": False},
}
RATE = "--model.optimizer.lr"
CONFIG = "--model.config."
HEALTHY = {
    "default": [],
    "muon": ["--model.optimizer", "lightning_gpt.optim.MuonAdamW"],
    "experts": [f"{CONFIG}moe.experts", "4"],
    "llama": [f"{CONFIG}feed_forward", "swiglu", f"{CONFIG}tie_embeddings", "false"],
    "relu": [f"{CONFIG}feed_forward", "relu"],
    "gpt2": [f"{CONFIG}position", "learned", f"{CONFIG}norm", "layernorm", f"{CONFIG}bias", "true"],
    "small batch": ["--data.batch_size", "4", "--data.block_size", "16", RATE, "1e-3"],
}
SICK = {
    "rate a hundred times too high": ([RATE, "0.3"], "rate_too_high", "Lower the learning rate: try a rate of"),
    "rate a thousand times too low": ([RATE, "1e-5"], "rate_too_low", "Raise the learning rate"),
    "twelve blocks of post-norm": (
        [f"{CONFIG}norm_place", "post", f"{CONFIG}n_layer", "12", f"{CONFIG}n_embd", "32"],
        "vanishing_gradients",
        "norm_place: pre",
    ),
    "batch of eight tokens": (["--data.batch_size", "1", "--data.block_size", "8"], "oscillating_loss", "batch"),
    "text read a hundred times": (
        ["--data.data_dir", "small", "--trainer.val_check_interval", "25", "--trainer.max_steps", "200"],
        "overfitting",
        "more text",
    ),
    "units killed": (
        [f"{CONFIG}feed_forward", "relu", f"{CONFIG}bias", "true", "--trainer.callbacks+=sickness.KillUnits"],
        "dead_units",
        "gelu or swiglu",
    ),
    "spikes": (["--trainer.callbacks+=sickness.Spikes"], "exploding_gradients", "spikes"),
    "slow loader": (["--data", "sickness.SlowData", "--trainer.max_steps", "60"], "data_bottleneck", "num_workers"),
    "targets shuffled": (["--data", "sickness.ShuffledTargets"], "plateau", "targets the inputs moved by one"),
    "rate of nothing": ([RATE, "1e-6"], "plateau", "ln V"),
}


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """A directory with Shakespeare as characters, whole and the first 6,000 of them, and the base configuration."""
    folder = tmp_path_factory.mktemp("clinic")
    prepare("shakespeare", "char", folder / "text", quiet=True)
    from lightning_gpt.data.sources import open_source

    text = next(iter(open_source("shakespeare").pieces())).text
    (folder / "small.txt").write_text(text[2000:8000])
    prepare(str(folder / "small.txt"), "char", folder / "small", val_fraction=0.3, quiet=True)
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    return folder


@pytest.fixture
def trained(clinic, clean_process, one_thread, monkeypatch):
    """trained(name, options): the directory of the run, whether or not it came to its end."""
    monkeypatch.chdir(clinic)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def train(name, options):
        directory = clinic / "runs" / name.replace(" ", "_")
        try:
            main(["fit", "-c", "base.yaml", "--run.name", directory.name, *options])
        except SystemExit as end:
            assert end.code, "only a failure exits"
        return directory / "version_0"

    return train


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_runs_are_left_alone(trained, capsys, name):
    run = trained(name, HEALTHY[name])
    assert "diagnosis:" not in capsys.readouterr().err
    assert read_diagnosis(run)["findings"] == []
    diagnose_command([str(run)])
    shown = capsys.readouterr().out
    assert "healthy" in shown and "rate_too_high" in shown  # what was checked is said


@pytest.mark.parametrize("name", SICK)
def test_sick_runs_are_recognised(trained, capsys, name):
    """While they train, once, and afterwards from what they logged; with what to change."""
    options, rule, advice = SICK[name]
    run = trained(name, options)
    said = [line for line in capsys.readouterr().err.splitlines() if "diagnosis:" in line]
    assert len(said) == len(set(said)) >= 1
    findings = {one["rule"]: one for one in read_diagnosis(run)["findings"]}
    assert rule in findings
    text = findings[rule]["message"] + findings[rule]["advice"]
    assert advice in text
    # A rate that is too low also leaves the loss at ln V; one too high explodes, kills units and ends where only
    # frequencies are known. Nothing else is named.
    low, high = {"rate_too_low", "vanishing_gradients"}, {"rate_too_high", "exploding_gradients", "dead_units"}
    together = {name: low | {"plateau"} for name in (*low, "plateau")} | {"rate_too_high": high | {"plateau"}}
    allowed = together.get(rule, {rule})
    assert set(findings) <= allowed
    diagnose_command([str(run)])
    assert rule in capsys.readouterr().out


BREAKS = {
    "BreakForward": r"blocks.1.feed_forward",
    "BreakBackward": r"gradient.*blocks.0.feed_forward|blocks.0.feed_forward.*gradient",
}


@pytest.mark.parametrize("callback, place", BREAKS.items(), ids=BREAKS)
def test_the_first_module_that_is_not_finite_is_named(trained, capsys, callback, place):
    import re

    run = trained(callback, [f"--trainer.callbacks+=sickness.{callback}"])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(f"the first that is not finite is .*({place})", error), error
    (finding,) = read_diagnosis(run)["findings"]
    assert (finding["rule"], finding["severity"], finding["step"]) == ("non_finite", "critical", 8)


def test_a_picture_of_the_signals(trained, capsys, clinic):
    run = trained("for the picture", [RATE, "0.3"])
    diagnose_command([str(run)], figure=str(clinic / "diagnosis.png"))
    assert (clinic / "diagnosis.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_read_does_not_hide_the_others(trained, capsys, clinic):
    good = trained("good", ["--trainer.max_steps", "60"])
    empty, cut = clinic / "runs/empty/version_0", clinic / "runs/cut/version_0"
    for directory in (empty, cut):
        directory.mkdir(parents=True)
    (empty / "metrics.jsonl").write_text("")
    rows = (good / "metrics.jsonl").read_text()
    (cut / "metrics.jsonl").write_text(rows + '{"step": 61, "train/lo')
    capsys.readouterr()
    diagnose_command(["nowhere", str(empty), str(cut), str(good)], brief=True)
    shown = capsys.readouterr()
    assert "nowhere" in shown.err and str(empty) in shown.err
    assert str(cut) in shown.out and str(good) in shown.out


def test_a_run_of_another_program_is_judged_by_what_it_logged(tmp_path, capsys):
    """Lightning's CSVLogger under the usual names: a loss that rises tenfold."""
    lines = ["step,train_loss,lr-AdamW,val_loss"]
    lines += [f"{10 * i},{2.0 + 0.02 * i * i},0.1," for i in range(60)]
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    diagnose_command([str(tmp_path)])
    assert "rate_too_high" in capsys.readouterr().out


def test_switched_off_it_measures_nothing(trained):
    run = trained("off", ["--diagnosis.enabled", "false", "--trainer.max_steps", "20"])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not any(key.startswith("diagnosis/") for row in rows for key in row)
    assert read_diagnosis(run) == {}
