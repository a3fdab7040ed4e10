"""SFT, reward models, DPO and KTO as runs of the command line."""

import json
import math

import pytest
import torch

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.cli import main
from lightning_gpt.data import InstructionData
from lightning_gpt.hub import open_model, save_model
from lightning_gpt.hub.checkpoint import read_checkpoint
from lightning_gpt.hub.reward_directory import is_reward_model, load_reward_model
from lightning_gpt.nn import GPT
from lightning_gpt.rewards import ModelReward

LORA = {"lora": {"rank": 4}}


def column(run, key) -> list[float]:
    return [row[key] for row in read_metrics(run / "metrics.jsonl") if key in row]


def last(run) -> str:
    return str(run / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("packing", ["false", "true"])
@pytest.mark.parametrize(
    "adapters", [{}, LORA, {"lora": {"rank": 4, "quantization": "nf4"}}], ids=["full", "lora", "qlora"]
)
def test_sft_learns_and_its_export_is_what_was_trained(
    post_train, tiny_model, answer_rows, tmp_path, adapters, packing
):
    run = post_train(
        "SFT",
        "InstructionData",
        {"init_from": str(tiny_model), **adapters},
        {"train": str(answer_rows), "val": str(answer_rows), "packing": packing == "true"},
        "--trainer.max_steps=20",
        "--model.optimizer.lr=0.02",
    )
    losses = column(run, "val/loss")
    assert losses[-1] < column(run, "train/loss")[0] - 0.5
    assert 0 < column(run, "val/mean_token_accuracy")[-1] <= 1 and column(run, "val/entropy")[-1] > 0
    main(["export", str(run), str(tmp_path / "out")])
    net, tokenizer = open_model(tmp_path / "out")
    data = InstructionData(str(answer_rows))
    data.use_model(tokenizer, 64)
    batch = data.collate(data.examples("train"))
    total, count = net.answer_loss(batch["input_ids"], batch["targets"])
    assert (total / count).item() == pytest.approx(losses[-1], rel=1e-3)
    if adapters:
        main(["export", str(run), str(tmp_path / "adapter"), "--adapter", "true"])
        again, _ = open_model(tmp_path / "adapter")
        total, count = again.answer_loss(batch["input_ids"], batch["targets"])
        exact = "quantization" not in adapters["lora"]
        assert (total / count).item() == pytest.approx(losses[-1], rel=1e-3 if exact else 0.2)
        state = read_checkpoint(last(run))["state_dict"]
        assert state and all(".lora_" in name for name in state)


def test_answer_loss_is_the_loss_of_the_answers(tiny_model):
    net, _ = open_model(tiny_model)
    torch.manual_seed(0)
    ids, targets = torch.randint(0, 257, (2, 5, 40))
    targets[torch.rand(5, 40) < 0.8] = -100
    for method in (net.loss, net.answer_loss):
        net.zero_grad()
        total, count = method(ids, targets)
        total.backward()
        found = (total.item(), count.item(), net.blocks[0].attention.qkv.weight.grad.clone())
        if method == net.loss:
            expected = found
    assert found[0] == pytest.approx(expected[0], rel=1e-5) and found[1] == expected[1]
    torch.testing.assert_close(found[2], expected[2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", ["rotary", "learned", "alibi", "sinusoidal", "none"])
def test_packed_rows_are_learnt_from_as_separate_ones(tiny_model, answer_rows, position):
    from dataclasses import replace

    net, tokenizer = open_model(tiny_model)
    torch.manual_seed(0)
    net = GPT(replace(net.config, position=position)).eval()
    sums = []
    for packing in (False, True):
        data = InstructionData(str(answer_rows), packing=packing)
        data.use_model(tokenizer, 64)
        batch = data.collate(data.examples("train"))
        sums.append(net.answer_loss(batch["input_ids"], batch["targets"], batch.get("document_ids")))
    assert len(batch["input_ids"]) < 30
    assert sums[0][1] == sums[1][1]
    assert sums[0][0].item() == pytest.approx(sums[1][0].item(), rel=1e-5)


def test_micro_batches_make_no_difference(post_train, tiny_model, answer_rows):
    """1 x 8 = 8 x 1: answers of different length count by their tokens."""
    found = []
    for size, times in ((8, 1), (1, 8)):
        run = post_train(
            "SFT",
            "InstructionData",
            {"init_from": str(tiny_model)},
            {"train": str(answer_rows), "batch_size": size},
            f"--trainer.accumulate_grad_batches={times}",
            name=f"by_{size}",
        )
        found.append((column(run, "train/loss"), column(run, "optim/gradient_norm")))
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("adapters", [{}, LORA], ids=["full", "lora"])
def test_neftune_and_resume_equal_an_undisturbed_run(post_train, tiny_model, answer_rows, adapters):
    steady = {"schedule": {"class_path": "lightning_gpt.optim.Constant"}}
    model = {"init_from": str(tiny_model), "neftune_alpha": 5.0, **steady, **adapters}
    rows = {"train": str(answer_rows), "val": str(answer_rows)}
    whole = post_train("SFT", "InstructionData", model, rows, name="whole")
    half = post_train("SFT", "InstructionData", model, rows, "--trainer.max_steps=3")
    half = post_train("SFT", "InstructionData", model, rows, "--ckpt_path", last(half))
    assert column(half, "train/loss") == column(whole, "train/loss")
    one, other = (read_checkpoint(last(run))["state_dict"] for run in (whole, half))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_chat_template_and_roles_stay_with_the_model(post_train, tiny_model, tmp_path, as_lines):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    rows = as_lines(tmp_path / "talk.jsonl", [{"messages": talk}] * 8)
    model = {"init_from": str(tiny_model)}
    run = post_train("SFT", "InstructionData", model, {"train": str(rows), "chat_template": "plain"})
    main(["export", str(run), str(tmp_path / "out")])
    assert "Assistant: " in open_model(tmp_path / "out")[1].roles.chat_template


@pytest.mark.parametrize("as_chat", [False, True])
def test_reward_model_from_pairs_to_scores(post_train, tiny_model, pair_rows, tmp_path, as_chat):
    """The rejected answers all end in !, which is easy to see; scored in the form in which they were learnt."""
    rows = {"train": str(pair_rows), "val": str(pair_rows), "as_chat": as_chat}
    run = post_train(
        "RewardModel",
        "PreferenceData",
        {"init_from": str(tiny_model)},
        rows,
        "--trainer.max_steps=40",
        "--best.monitor=val/accuracy",
        "--best.mode=max",
    )
    assert column(run, "val/accuracy")[-1] > 0.9
    assert {"train/accuracy", "train/margin", "train/min_reward", "train/max_reward"} <= read_metrics(
        run / "metrics.jsonl"
    )[0].keys()
    assert (run / "calibration.png").stat().st_size > 5000
    assert is_reward_model(run) and not is_reward_model(tiny_model)
    main(["export", last(run), str(tmp_path / "rm")])
    some = [json.loads(line) for line in pair_rows.read_text().splitlines()]
    prompts = [row["prompt"] for row in some]
    for place in (str(tmp_path / "rm"), str(run / "checkpoints" / "last.ckpt")):
        reward = ModelReward(place, batch_size=7)
        chosen, rejected = (reward(prompts, [row[name] for row in some]) for name in ("chosen", "rejected"))
        right = sum(a > b for a, b in zip(chosen, rejected)) / len(some)
        assert right == pytest.approx(column(run, "val/accuracy")[-1], abs=1e-6)
        if as_chat:  # the column that conversations come with says the same as the bare prompt
            talks = [[{"role": "user", "content": prompt}] for prompt in prompts]
            assert reward(["?"] * len(some), [row["chosen"] for row in some], prompt_messages=talks) == chosen
        both = torch.tensor([chosen, rejected])
        assert abs(both.mean().item()) < 1e-3 and both.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="a language model, not a reward model"):
        load_reward_model(tiny_model)


def test_process_reward_model_and_best_of_n(post_train, tiny_model, tmp_path, as_lines):
    """Wrong steps contain an x; with more candidates the chosen one is right more often."""
    import random

    draw = random.Random(0)

    def solution():
        labels = [draw.random() < 0.6 for _ in range(3)]
        return [draw.choice("abc") + ("" if right else "x") for right in labels], labels

    rows = [dict(zip(("completions", "labels"), solution())) | {"prompt": "go: "} for _ in range(60)]
    path = as_lines(tmp_path / "steps.jsonl", rows)
    run = post_train(
        "ProcessRewardModel",
        "StepData",
        {"init_from": str(tiny_model)},
        {"train": str(path), "val": str(path)},
        "--trainer.max_steps=60",
        "--best.monitor=val/accuracy",
        "--best.mode=max",
    )
    assert column(run, "val/accuracy")[-1] > 0.95 and column(run, "val/first_error")[-1] > 0.9
    reward = ModelReward(str(run))
    rates = []
    for n in (1, 2, 8):
        right = 0
        for _ in range(40):
            candidates = [solution() for _ in range(n)]
            scores = reward(["go: "] * n, ["\n".join(steps) for steps, _ in candidates])
            right += all(candidates[max(range(n), key=scores.__getitem__)][1])
        rates.append(right / 40)
    assert rates[0] < rates[1] < rates[2]
    empty, wrong = reward(["go: "] * 2, ["", "ax"])
    assert empty < wrong  # no step is no solution


def test_dpo_raises_the_margin_by_live_and_by_kept_reference(post_train, tiny_model, pair_rows, tmp_path, as_lines):
    rows = {"train": str(pair_rows), "val": str(pair_rows)}
    found = {}
    kept = tmp_path / "reference.safetensors"
    for name, model in (
        ("live", {}),
        ("kept", {"reference_file": str(kept)}),
        ("again", {"reference_file": str(kept)}),
        ("lora", LORA),
    ):
        run = post_train("DPO", "PreferenceData", {"init_from": str(tiny_model), **model}, rows, name=name)
        found[name] = column(run, "train/loss")
        assert found[name][0] == pytest.approx(math.log(2), abs=1e-5)  # the policy is the reference
        assert column(run, "rewards/accuracies")[-1] >= 0.5 and column(run, "val/rewards/margins")[-1] > 0.1
        state = read_checkpoint(last(run))["state_dict"]
        assert not [key for key in state if key.startswith("reference")]
    assert found["live"] == pytest.approx(found["kept"], abs=1e-5) and found["again"] == found["kept"]
    with pytest.raises(SystemExit):
        other = as_lines(tmp_path / "other.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4)
        model = {"init_from": str(tiny_model), "reference_file": str(kept)}
        post_train("DPO", "PreferenceData", model, {"train": str(other)})


def test_a_stale_reference_says_what_changed(post_train, tiny_model, pair_rows, tmp_path, capsys):
    kept = tmp_path / "reference.safetensors"
    model = {"init_from": str(tiny_model), "reference_file": str(kept)}
    post_train("DPO", "PreferenceData", model, {"train": str(pair_rows)})
    net, tokenizer = open_model(tiny_model)
    with torch.no_grad():
        net.token_embedding.weight.mul_(1.1)
    save_model(tmp_path / "other", net, tokenizer)
    with pytest.raises(SystemExit):
        post_train("DPO", "PreferenceData", model | {"init_from": str(tmp_path / "other")}, {"train": str(pair_rows)})
    assert "was computed with another model: delete it" in capsys.readouterr().err


def test_kto_tells_wanted_from_unwanted(post_train, tiny_model, pair_rows):
    rows = {"train": str(pair_rows), "val": str(pair_rows), "batch_size": 8}
    run = post_train("KTO", "LabelledData", {"init_from": str(tiny_model)}, rows, "--trainer.max_steps=20")
    assert column(run, "val/rewards/margins")[-1] > 0.05 and min(column(run, "kl")) >= 0


@pytest.mark.parametrize(
    ("task", "data", "model", "words"),
    [
        ("SFT", "InstructionData", {"neftune_alpha": -1}, "model.neftune_alpha=-1.0"),
        ("RewardModel", "PreferenceData", {"centering": -1}, "model.centering=-1.0"),
        ("DPO", "PreferenceData", {"sft_weight": -1}, "model.sft_weight=-1.0"),
        ("SFT", "InstructionData", {"lora": {"rank": 0}}, "lora.rank=0"),
        ("SFT", "InstructionData", {"init_from": "nowhere/at/all"}, "nowhere/at/all"),
    ],
)
def test_bad_settings_are_one_line(post_train, tiny_model, pair_rows, capsys, task, data, model, words):
    with pytest.raises(SystemExit):
        post_train(task, data, {"init_from": str(tiny_model), **model}, {"train": str(pair_rows)})
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_process_without_a_validation_example_takes_part(
    post_train, tiny_model, pair_rows, as_lines, tmp_path, one_thread
):
    one = [json.loads(line) for line in pair_rows.read_text().splitlines()][:1]
    rows = {"train": str(pair_rows), "val": str(as_lines(tmp_path / "one.jsonl", one)), "batch_size": 2}
    two = ("--trainer.devices=2", "--trainer.strategy=ddp_fork", "--trainer.max_steps=2")
    run = post_train("DPO", "PreferenceData", {"init_from": str(tiny_model)}, rows, *two)
    assert column(run, "val/rewards/accuracies")[-1] in (0.0, 1.0)


@pytest.mark.parametrize("task", ["SFT", "DPO", "RewardModel", "KTO"])
def test_two_processes_are_one(post_train, tiny_model, pair_rows, answer_rows, one_thread, task):
    data = {"SFT": "InstructionData", "KTO": "LabelledData"}.get(task, "PreferenceData")
    rows = {"train": str(answer_rows if task == "SFT" else pair_rows)}
    found = []
    for world in (1, 2):
        run = post_train(
            task,
            data,
            {"init_from": str(tiny_model)},
            {**rows, "val": rows["train"], "batch_size": 8 // world},
            f"--trainer.devices={world}",
            f"--trainer.strategy={'auto' if world == 1 else 'ddp_fork'}",
            "--best.monitor=val/loss",
            name=f"{task}_{world}",
        )
        keys = ("train/loss", "optim/gradient_norm", "val/loss") if task != "KTO" else ("optim/gradient_norm",)
        found.append([column(run, key) for key in keys])
    if task == "KTO":  # each process mismatches answers among its own: only the first gradient's size is alike
        assert found[0][0][0] == pytest.approx(found[1][0][0], rel=0.05)
        return
    torch.testing.assert_close(
        [torch.tensor(one) for one in found[0]], [torch.tensor(one) for one in found[1]], rtol=2e-3, atol=2e-4
    )


def test_the_ceiling_of_drawn_labels_is_logged(post_train, tiny_model, as_lines, tmp_path):
    rows = [
        {"prompt": str(n), "chosen": " a", "rejected": " b", "probability": 0.9 if n % 2 else 0.3} for n in range(8)
    ]
    path = str(as_lines(tmp_path / "p.jsonl", rows))
    run = post_train("RewardModel", "PreferenceData", {"init_from": str(tiny_model)}, {"train": path, "val": path})
    assert column(run, "val/accuracy_ceiling")[-1] == pytest.approx(0.8)
