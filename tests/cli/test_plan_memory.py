"""`lightning-gpt plan memory` as a person calls it."""

import re

import pytest
import yaml

from lightning_gpt.cli import main
from lightning_gpt.cli.memory_settings import training_job
from lightning_gpt.cli.settings_check import parsed_settings
from lightning_gpt.optim import MuonAdamW

MUON = {"model": {"init_args": {"optimizer": {"class_path": "lightning_gpt.optim.MuonAdamW"}}}}


@pytest.fixture
def stacked(tmp_path):
    """stacked({...}): the path of a YAML file with it."""

    def write(settings: dict) -> str:
        path = tmp_path / f"stacked_{len(list(tmp_path.glob('stacked_*')))}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return str(path)

    return write


def peak(text: str) -> float:
    """Of a report, in MiB."""
    number, unit = re.search(r"the peak +([\d.]+) (\w+)", text).groups()
    return float(number) * {"MiB": 1, "GiB": 1024}[unit]


def test_components_levers_and_the_largest_batch(recipe, clean_process, tmp_path, capsys):
    size = ["--data.batch_size", "256", "--model.config.n_embd", "128", "--model.config.n_layer", "6"]
    main(["plan", "memory", "-c", str(recipe), *size, "--memory", "16GiB", "--figure", str(tmp_path / "memory.png")])
    text = capsys.readouterr().out
    for line in (
        "x 16 tokens, 32-true, AdamW, cpu",
        "attention: plain; logits of",
        "end of the forward pass",
        "optimizer step",
        "key/value cache of generation:",
        "recompute every block",
        "model.activation_checkpointing: full",
    ):
        assert line in text, line
    for name in ("weights", "gradients", "optimizer", "activations", "process", "the peak"):
        assert re.search(rf"^  {name} +[\d.]+ [KMG]iB", text, re.MULTILINE), name
    assert re.search(r"largest batch: \d{3,} windows of 16 tokens a device and forward pass in 16GiB", text)
    assert (tmp_path / "memory.png").exists()


def test_settings_are_those_of_fit(recipe, stacked, clean_process):
    trainer = {"trainer": {"precision": "bf16-mixed", "accumulate_grad_batches": 3}}
    network = {"config": {"moe": {"experts": 4}}, "activation_checkpointing": 2}
    job = training_job(
        parsed_settings([recipe, stacked(MUON), stacked(trainer), stacked({"model": {"init_args": network}})])
    )
    assert isinstance(job.optimizer, MuonAdamW) and job.precision == "bf16-mixed" and job.accumulate == 3
    assert job.config.moe.experts == 4 and job.activation_checkpointing == 2 and job.device == "cpu"
    assert (job.batch_size, job.block_size, job.validation) == (4, 16, (16, 16))
    assert job.config.block_size == 16 and job.config.n_embd == 32 and job.config.vocab_size < 50


@pytest.mark.parametrize(
    ("strategy", "name", "view"),
    [
        ("ddp", "ddp", False),
        ("ddp_find_unused_parameters_true", "ddp", False),
        ({"class_path": "DDPStrategy", "init_args": {"gradient_as_bucket_view": True}}, "ddp", True),
        ({"class_path": "lightning_gpt.parallel.FullySharded"}, "fsdp", False),
        ({"class_path": "lightning_gpt.parallel.data_parallel.DataParallel"}, "ddp", True),
        ("auto", "ddp", False),
    ],
)
def test_strategies(strategy, name, view, recipe, stacked, clean_process):
    job = training_job(parsed_settings([recipe, stacked({"trainer": {"devices": 4, "strategy": strategy}})]))
    assert (job.strategy, job.bucket_view, job.devices) == (name, view, 4)


def test_the_command_line_wins(recipe, clean_process, capsys):
    main(["plan", "memory", "-c", str(recipe), "--devices", "8", "--strategy", "fsdp", "--device", "cuda"])
    text = capsys.readouterr().out
    assert "8 x cuda, fsdp" in text and "not measured on a GPU" in text and "communication" in text
    shown = []
    for width in ("32", "1024"):
        main(["plan", "memory", "-c", str(recipe), "--memory", "8GiB", "--model.config.n_embd", width])
        shown.append(peak(capsys.readouterr().out))
    assert shown[1] > shown[0] + 300
    main(["plan", "memory", "-c", str(recipe), "--trainer.precision=bf16-true", "--memory", "1GiB"])
    assert "bf16-true, AdamW" in capsys.readouterr().out


def test_a_budget_that_holds_nothing_says_so(recipe, clean_process, capsys):
    main(["plan", "memory", "-c", str(recipe), "--memory", "100MiB"])
    assert "not even one window of 16 tokens fits into 100MiB: pull a lever" in capsys.readouterr().out


def test_a_batch_that_does_not_fit_is_accumulated(recipe, clean_process, capsys):
    main(["plan", "memory", "-c", str(recipe), "--memory", "4GiB", "--data.batch_size", "1000000"])
    line = re.search(r"largest batch: (\d+) .* trainer.accumulate_grad_batches: (\d+)", capsys.readouterr().out)
    assert int(line[1]) * int(line[2]) >= 1_000_000 > int(line[1]) * (int(line[2]) - 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--memory", "24"], "memory='24' must be a number with a unit, such as 24GiB or 80GB"),
        (["--memory", "0GiB"], "memory='0GiB' must be positive"),
        (["--devices", "0"], "devices=0 must be at least 1"),
        (["--devices", "2", "--strategy", "fdsp"], "strategy='fdsp' is unknown, did you mean 'fsdp'"),
        (["--context", "17"], "context=17 must be between 1 and the model's block_size=16"),
        (["--vocab_size", "0"], "vocab_size=0 must be at least 1"),
        (["--data.data_dir", "nowhere"], "data_dir=nowhere is not prepared here, so the vocabulary is unknown: give"),
        (["--data.batch_size", "0"], "batch_size=0 must be at least 1"),
        (["--trainer.precision", "16-mixed"], "trainer.precision=16-mixed needs a GPU"),
        (["--trainer.strategy", "deepspeed"], "trainer.strategy=deepspeed is unknown to the memory planner"),
        (["--model.config.n_embed", "3"], "n_embd"),
    ],
)
def test_mistakes_are_one_line(args, message, recipe, clean_process, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "memory", "-c", str(recipe), *args])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


def test_configurations_without_a_topic(stacked, clean_process, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "memory", "-c", stacked({"trainer": {"max_steps": 3}})])
    assert stop.value.code == 2
    assert "the configurations hold no data and no model: stack a topic" in capsys.readouterr().err


def test_a_corpus_that_is_elsewhere(recipe, clean_process, capsys):
    args = [
        "plan",
        "memory",
        "-c",
        str(recipe),
        "--memory",
        "4GiB",
        "--data.data_dir",
        "nowhere",
        "--vocab_size",
        "50304",
    ]
    main(args)
    assert "logits of 50,304 ids at once" in capsys.readouterr().out
