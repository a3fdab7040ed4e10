"""LLaVA's two stages: what learns, what a checkpoint holds, and that it looks at the pictures."""

import json

import pytest
import torch

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.cli import main
from lightning_gpt.data import VisionInstructionData
from lightning_gpt.hub import open_model
from lightning_gpt.hub.llava import load_llava
from lightning_gpt.hub.llava_opening import open_llava
from lightning_gpt.inference import SamplingConfig, generate

CONSTANT = {"class_path": "lightning_gpt.optim.Constant"}


@pytest.fixture
def llava(post_train, tiny_model, tiny_clip, squares):
    """llava(name, {model settings}, {data settings}, *options): a run."""

    def run(name: str, model: dict, rows: dict, *options: str):
        talks = str(squares.parent / "talks.jsonl")
        start = {"init_from": str(tiny_model), "tower": str(tiny_clip), "schedule": CONSTANT}
        return post_train(
            "LLaVA",
            "VisionInstructionData",
            {key: value for key, value in {**start, **model}.items() if value is not None},
            {"train": talks, "val": talks, "batch_size": 8, "chat_template": "plain", **rows},
            *options,
            name=name,
        )

    return run


def column(run, key: str) -> list[float]:
    return [row[key] for row in read_metrics(run / "metrics.jsonl") if key in row]


def state_of(run, name: str = "last") -> dict:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=False)["state_dict"]


def test_it_looks_at_the_pictures_and_exact_match_is_greedy_decoding(llava, squares):
    run = llava("whole", {"train_tower": True}, {}, "--trainer.max_steps=160")
    assert column(run, "val/exact_match_colour")[-1] > 0.6 > 4 * column(run, "val/majority_colour")[-1]
    assert column(run, "val/yes_no_f1")[-1] > 0.5 and "val/caption_r1" not in read_metrics(run / "metrics.jsonl")[-1]
    model, tokenizer = open_llava(run / "checkpoints" / "last.ckpt")
    data = VisionInstructionData(str(squares.parent / "talks.jsonl"), chat_template="plain")
    data.use_model(tokenizer, 64)
    data.use_tower(tokenizer, model.tower.tokens, model.tower.preprocess)
    examples = data.examples("train")
    prompts = [one.ids[: one.spoken.index(True)] for one in examples]
    pixels = [torch.stack([data.pixels(image) for image in one.images]) if one.images else None for one in examples]
    embeds = model.prompt_embeds(prompts, pixels)
    greedy, ends = SamplingConfig(temperature=0), [tokenizer.eos_id]
    said = generate(model.net, prompts, 20, greedy, ends, prompt_embeds=embeds)
    spoken = [[token for token, speaks in zip(one.ids, one.spoken) if speaks] for one in examples]
    right = [ours == theirs for ours, theirs in zip(said, spoken, strict=True)]
    assert sum(right) / len(right) == pytest.approx(column(run, "val/exact_match")[-1], abs=0.03)


def test_stage_one_moves_the_projector_alone_and_stage_two_goes_on_from_it(llava, tiny_model, tmp_path, capsys):
    first = llava("align", {"learn": "projector"}, {})
    assert "exact match of always giving the commonest training answer: " in capsys.readouterr().err
    state = state_of(first)
    assert not any(name.startswith("net.") for name in state)
    aligned, tokenizer = open_llava(first)
    base, _ = open_model(tiny_model)
    for name, weights in base.state_dict().items():
        assert torch.equal(aligned.net.state_dict()[name][: len(weights)], weights), name
    lora = {"rank": 4, "alpha": 8}
    second = llava("instruct", {"init_from": str(first), "tower": None, "lora": lora}, {})
    names = state_of(second)
    assert any("lora_A" in name for name in names) and "net.token_embedding.weight" not in names
    best = state_of(second, "best")
    tuned, _ = open_llava(second / "checkpoints" / "last.ckpt")
    assert torch.equal(tuned.projector[0].weight, names["projector.0.weight"])
    assert not torch.equal(tuned.projector[0].weight, state["projector.0.weight"])
    assert best.keys() == names.keys()
    ids = torch.tensor([tokenizer.encode("User: ") + [tokenizer.special_tokens["<image>"]] * 4])
    pixels = torch.randn(1, 3, 16, 16)
    last = second / "checkpoints" / "last.ckpt"
    main(["export", str(last), str(tmp_path / "exported")])
    exported, _ = load_llava(tmp_path / "exported")
    torch.testing.assert_close(exported(ids, pixels), tuned(ids, pixels), rtol=1e-4, atol=1e-4)


def test_resuming_equals_never_stopping(llava):
    options = ("--trainer.val_check_interval=100",)
    llava("stopped", {}, {}, "--trainer.max_steps=3", *options)
    resumed = llava("stopped", {}, {}, "--trainer.max_steps=7", *options, "--ckpt_path=last")
    straight = llava("straight", {}, {}, "--trainer.max_steps=7", *options)
    ours, theirs = state_of(resumed), state_of(straight)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_processes_are_one_with_text_only_rows_among_them(llava, one_thread):
    found = []
    for world in (1, 2):
        run = llava(
            f"world_{world}",
            {},
            {"batch_size": 4 // world},
            f"--trainer.devices={world}",
            f"--trainer.strategy={'auto' if world == 1 else 'ddp_fork'}",
        )
        keys = ("train/loss", "optim/gradient_norm", "val/loss", "val/exact_match")
        found.append([torch.tensor(column(run, key)) for key in keys])
    torch.testing.assert_close(found[0], found[1], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("cache", [0, 64])
def test_kept_features_train_alike_and_text_alone_does_not_pay_for_the_tower(
    llava, squares, as_lines, cache, monkeypatch
):
    from lightning_gpt.nn.vision_tower import VisionTower

    seen: list[int] = []
    before = VisionTower.forward

    def counted(self, pixels):
        if pixels.any():  # not the dry run that asks for the tower's shape
            seen.append(len(pixels))
        return before(self, pixels)

    monkeypatch.setattr(VisionTower, "forward", counted)
    run = llava(
        "kept", {"feature_cache_mb": cache}, {"val": None}, "--trainer.max_steps=12", "--best.monitor=train/loss"
    )
    assert column(run, "train/loss")[-1] < column(run, "train/loss")[0]
    assert len(seen) == (16 if cache else 12)
    text = [json.loads(line) for line in (squares.parent / "talks.jsonl").read_text().splitlines()]
    table = as_lines(squares.parent / "text.jsonl", [row for row in text if "image" not in row])
    seen.clear()
    llava("text", {"feature_cache_mb": cache}, {"train": str(table), "val": str(table)}, "--trainer.max_steps=2")
    assert not seen


def test_the_projector_may_have_a_rate_of_its_own(llava):
    run = llava("rates", {"projector_lr": 1e-5}, {}, "--trainer.max_steps=1")
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["optimizer_states"][0]["param_groups"]
    rates = {group["name"]: group["initial_lr"] for group in saved}
    assert {rate for name, rate in rates.items() if name.startswith("projector")} == {1e-5}
    assert {rate for name, rate in rates.items() if not name.startswith("projector")} == {3e-3}


@pytest.mark.parametrize(
    ("model", "rows", "message"),
    [
        ({"tower": None}, {}, "name what sees in model.tower"),
        ({"tower": "nowhere/at-all"}, {}, "nowhere/at-all is neither"),
        ({"learn": "projector", "lora": {"rank": 2}}, {}, "trains nothing else"),
        ({"image_size": 32}, {}, "positions are made for 16 pixels"),
        ({"tower_layer": -9}, {}, "layer=-9 is not in this tower"),
        ({"projector_lr": 0.0}, {}, "projector_lr=0.0 must be positive"),
        ({}, {"max_length": 8}, "do not fit into max_length=8"),
    ],
)
def test_mistakes_get_one_line(llava, capsys, model, rows, message):
    with pytest.raises(SystemExit):
        llava("wrong", model, rows)
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "small_red.png", "messages": "Colour?"}, "say <image> 0 times, the row has 1 pictures"),
        ({"messages": "<image>Colour?"}, "say <image> 1 times, the row has 0 pictures"),
        ({"image": "gone.png", "messages": "<image>Colour?"}, "gone.png does not exist"),
        ({"image": "small_red.png", "messages": "<image>Colour?", "answer": ""}, "no words"),
    ],
)
def test_rows_that_cannot_be_are_named(llava, squares, as_lines, capsys, row, message):
    answer = {"role": "assistant", "content": row.pop("answer", "red")}
    turns = [{"role": "user", "content": row["messages"]}, *([answer] if answer["content"] else [])]
    table = as_lines(squares.parent / "wrong.jsonl", [{**row, "messages": turns}])
    with pytest.raises(SystemExit):
        llava("wrong", {}, {"train": str(table), "val": str(table)})
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last and "wrong.jsonl:1" in last


def test_broken_pictures_are_left_out_and_counted(llava, squares, as_lines):
    (squares.parent / "broken.png").write_bytes(b"x")
    text = [json.loads(line) for line in (squares.parent / "talks.jsonl").read_text().splitlines()]
    table = as_lines(squares.parent / "some.jsonl", [{**text[0], "image": "broken.png"}, *text[1:]])
    with pytest.warns(UserWarning, match=r"rows left out for their pictures so far: 1, the last: .*broken.png"):
        llava("skip", {}, {"train": str(table), "val": str(table), "invalid": "skip"}, "--trainer.max_steps=6")
