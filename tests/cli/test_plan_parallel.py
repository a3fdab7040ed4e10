"""`lightning-gpt plan parallel` as a person calls it."""

import json
import re
from pathlib import Path

import pytest
import yaml

from lightning_gpt.cli import main

ROOT = Path(__file__).parents[2]


def rows(text: str) -> dict[str, list[str]]:
    """Strategy -> the cells behind its name."""
    table = text.split("\n\n")[1].splitlines()[1:]
    return {re.split(r"  +", line)[0]: re.split(r"  +", line)[1:] for line in table if re.search(r" (yes|no)$", line)}


def test_a_size_becomes_proposals(clean_process, capsys, tmp_path):
    files = ["--figure", str(tmp_path / "plan.png"), "--json", str(tmp_path / "plan.json")]
    asked = ["--params", "7e9", "--gpus", "8xA100", "--context", "2048", "--global_batch_tokens", "4e6"]
    main(["plan", "parallel", *asked, *files])
    text = capsys.readouterr().out
    assert "3,997,696 tokens, 1,952 windows of 2,048 (4e+06 asked for)" in text
    assert "8 x NVIDIA A100 SXM 80 GB at 40% of 312 TFLOP/s" in text and "NVLink 3" in text
    table = rows(text)
    assert next(iter(table)) == "FSDP" and {"DDP", "TP"} < table.keys()
    assert [row[-1] for row in table.values()] == ["yes"] * (len(table) - 1) + ["no"]
    assert re.search(r"^DDP needs [\d.]+ of 80 GB \(optimizer ", text, re.MULTILINE)
    assert "recommended: FSDP\n" in text and "-c configs/trainer/fsdp.yaml" in text
    assert "--model.config.n_layer 33" in text and "--trainer.accumulate_grad_batches 122" in text
    content = json.loads((tmp_path / "plan.json").read_text())
    first = content["proposals"][0]
    assert first["title"] == "FSDP" and first["fits"] and first["memory_bytes"] < first["budget_bytes"] == 80e9
    parts = [first["seconds"][name] for name in ("compute", "exposed", "waiting", "optimizer")]
    assert sum(parts) == pytest.approx(first["seconds"]["total"])
    assert first["tokens_per_second"] == pytest.approx(3_997_696 / first["seconds"]["total"])
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_recommended_is_what_fit_takes(recipe, clean_process, capsys, tmp_path):
    """The printed command, with a topic of ours in the place of TOPIC.yaml, passes fit's own parser."""
    from lightning_gpt.cli.settings_check import parsed_arguments

    main(["plan", "parallel", "-c", str(recipe), "--gpus", "2xcpu", "--peak_flops", "1e11", "--memory", "8GiB"])
    text = capsys.readouterr().out
    command = text.replace("\\\n", " ").split("recommended: ")[1].splitlines()[1]
    words = command.split()[2:]
    assert words[:2] == ["-c", "TOPIC.yaml"] and words[3] == "configs/trainer/ddp.yaml"
    words[1], words[3] = str(recipe), str(ROOT / words[3])
    settings = parsed_arguments(words)
    assert int(settings.trainer.devices) == 2 and settings.trainer.accelerator == "cpu"
    assert settings.data.init_args.batch_size * settings.trainer.accumulate_grad_batches * 2 == 4
    assert settings.model.init_args.optimizer.class_path == "lightning_gpt.optim.AdamW"


def test_every_strategy_is_something_that_fit_takes(recipe, clean_process):
    from lightning_gpt.cli.memory_settings import training_job
    from lightning_gpt.cli.settings_check import parsed_arguments
    from lightning_gpt.planning.accelerators import parse_machine
    from lightning_gpt.planning.parallel_layout import make_cluster
    from lightning_gpt.planning.parallel_plan import propose
    from lightning_gpt.planning.parallel_settings import command

    base = training_job(parsed_arguments(["-c", str(recipe)]), 1, "single", "cpu")
    seen = set()
    for devices, per_node in ((4, 2), (2, 2)):
        cluster = make_cluster(parse_machine(f"{devices}xcpu", peak_flops=1e11), None, per_node)
        for one in propose(base, cluster, 8, budget=8e9):
            words = command(one, base, cluster, False).replace("\\\n", " ").split()[2:]
            words[1], words[3] = str(recipe), str(ROOT / words[3])
            settings = parsed_arguments(words).trainer
            options = settings.strategy.init_args if hasattr(settings.strategy, "init_args") else {}
            found = (options.get("shard_size"), options.get("tensor_parallel"))
            expected = {"hsdp": (2, 1), "fsdp": (None, 1), "fsdp_tp": (None, 2)}.get(one.layout.strategy)
            assert expected in (None, found)
            assert int(settings.num_nodes) * int(settings.devices) == devices
            seen.add(one.layout.strategy)
    assert seen == {"ddp", "fsdp", "hsdp", "tp", "fsdp_tp"}


def test_files_give_network_and_batch(recipe, clean_process, capsys, tmp_path):
    stacked = tmp_path / "batch.yaml"
    stacked.write_text(
        yaml.safe_dump({"data": {"init_args": {"batch_size": 8}}, "trainer": {"precision": "bf16-true"}})
    )
    main(["plan", "parallel", "-c", str(recipe), "-c", str(stacked), "--gpus", "4xA100"])
    text = capsys.readouterr().out
    assert "128 tokens, 8 windows of 16" in text and "bf16-true, AdamW" in text
    assert rows(text)["DDP"][:2] == ["2", "1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model gpt2", "gpus: name the machine, such as --gpus 8xA100"),
        ("--gpus 8xA100", "exactly one of -c, --params, --model; got none"),
        ("--gpus 8xA100 --model gpt2 --params 1e9", "exactly one of -c, --params, --model; got --params, --model"),
        ("--gpus 8xA1000 --model gpt2", "accelerator 'A1000' is unknown, did you mean a100"),
        ("--gpus 8xA100 --model gpt2 --interconnect nvlin", "interconnect='nvlin' is unknown, did you mean nvlink"),
        ("--gpus 8xA100 --model gpt2 --tensor 8", "tensor=8: 12 heads do not divide by 8 (use 1, 2, 4)"),
        ("--gpus 8xA100 --model llama-7b --tensor 16", "tensor=16: it does not divide a node of 8 devices"),
        ("--gpus 8xA100 --model gpt2 --global_batch_tokens 20000", "use 16,384 or 24,576"),
        ("--gpus 8xA100 --model gpt2 --global_batch_tokens -1", "global_batch_tokens=-1 must be at least 1"),
        ("--gpus 8xA100 --model gpt2 --micro_batch 0", "micro_batch=0 must be at least 1"),
        (
            "--gpus 8xA100 --model gpt2 --context 4096",
            "context=4096 must be between 1 and the network's block_size=1024",
        ),
        ("--gpus 8xA100 --model gpt2 --optimizer Adam", "optimizer='Adam' is unknown, did you mean 'AdamW'"),
        ("--gpus 8xA100 --model gpt2 --precision bf16", "precision='bf16' is unknown, did you mean 'bf16-"),
        ("--gpus 2xcpu --model gpt2", "give --peak_flops"),
        ("--gpus 2xcpu --model gpt2 --peak_flops 1e11", "the memory of cpu is unknown: give --memory"),
    ],
)
def test_one_line_errors(options, message, clean_process, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "parallel", *options.split()])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and message in said


def test_nothing_fits(clean_process, capsys):
    main(["plan", "parallel", "--model", "gpt2-xl", "--gpus", "2xT4", "--memory", "2GB"])
    text = capsys.readouterr().out
    assert "nothing fits: the least is" in text and "--precision bf16-true" in text and "more devices" in text
