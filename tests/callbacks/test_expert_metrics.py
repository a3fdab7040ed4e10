import math

import pytest
import torch

from lightning_gpt.callbacks.expert_metrics import draw_loads
from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.moe import RouterReport
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.tasks.expert_loads import ExpertLoads

MOE = {"experts": 4, "top_k": 2, "expert_hidden": 32}
NAMES = {"max_violation", "min_load", "dropped", "entropy"}


def settings(**moe):
    return {"model": {"init_args": {"config": {"bias": False, "moe": MOE | moe}}}}


def test_loads_are_logged_and_drawn(lightning_gpt):
    run = lightning_gpt("fit", settings(capacity_factor=1.0), "--run.tensorboard", "true")
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "experts/entropy" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        for layer in (0, 1):
            assert {f"experts/{layer}/{name}" for name in NAMES} <= row.keys()
            assert 0 < row[f"experts/{layer}/entropy"] <= 1
            assert 0 <= row[f"experts/{layer}/dropped"] < 0.5
            assert row[f"experts/{layer}/min_load"] <= 1 <= row[f"experts/{layer}/max_violation"] + 1
        mean = (row["experts/0/max_violation"] + row["experts/1/max_violation"]) / 2
        assert row["experts/max_violation"] == pytest.approx(mean)
    assert (run / "expert_load.png").stat().st_size > 5000
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run)).Reload()
    assert "experts/load" in events.Tags()["images"]


def test_the_bias_moves_once_a_step_whatever_the_accumulation(lightning_gpt):
    moe = settings(balance="bias", bias_rate=0.25)
    run = lightning_gpt("fit", moe, "--trainer.accumulate_grad_batches", 3, "--trainer.max_steps", 1)
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    biases = [value for key, value in state.items() if key.endswith("balance_bias_E")]
    assert len(biases) == 2
    for bias in biases:
        assert set(bias.tolist()) == {-0.25, 0.25}


def test_windows_by_hand():
    net = GPT(GPTConfig(vocab_size=9, n_layer=2, n_head=2, n_embd=16, bias=False, moe=MoEConfig(**MOE)))
    loads = ExpertLoads(net)
    for load in ([6, 2, 0, 0], [0, 2, 2, 4]):
        report = RouterReport(
            torch.tensor(0.0), torch.tensor(load), torch.tensor(load[0] / 8), torch.tensor(math.log(4) / 2)
        )
        for _, mixture in loads.layers:
            mixture.report = report
        loads.add()
    metrics, share_LE = loads.window(world_size=1)
    assert share_LE.tolist() == [[6 / 16, 4 / 16, 2 / 16, 4 / 16]] * 2
    assert metrics["experts/1/max_violation"] == pytest.approx(0.5)
    assert metrics["experts/min_load"] == pytest.approx(0.5)
    assert metrics["experts/dropped"] == pytest.approx(0.375)
    assert metrics["experts/entropy"] == pytest.approx(0.5)
    assert len(draw_loads(share_LE, [0, 1], 3).axes[0].texts) == 8


def test_a_dense_run_has_no_such_metrics(lightning_gpt):
    run = lightning_gpt("fit")
    assert not any(key.startswith("experts/") for row in read_metrics(run / "metrics.jsonl") for key in row)


def test_expert_choice_trains_and_draws_no_samples(lightning_gpt, capsys):
    run = lightning_gpt("fit", settings(routing="expert_choice", balance="none"), "--samples.tokens", "5")
    assert (run / "checkpoints" / "last.ckpt").exists()
    from lightning_gpt.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["generate", str(run), "--prompt", "to"])
    assert stop.value.code == 2
    assert "moe.routing=expert_choice cannot generate" in capsys.readouterr().err


def test_a_resumed_run_logs_what_an_uninterrupted_one_does(lightning_gpt):
    common = (
        settings(balance="bias", bias_rate=0.05),
        *("--trainer.log_every_n_steps", 4, "--trainer.accumulate_grad_batches", 2, "--trainer.val_check_interval", 8),
        *("--model.schedule.decay_steps", 8, "--last.every_n_steps", 1),
    )

    def loads(run):
        rows = read_metrics(run / "metrics.jsonl")
        return [
            (row["step"], {k: v for k, v in row.items() if "expert" in k}) for row in rows if "experts/dropped" in row
        ]

    whole = loads(lightning_gpt("fit", *common, "--trainer.max_steps", 8, "--run.name", "whole"))
    for stop in (3, 4):
        name = ("--run.name", f"cut{stop}")
        lightning_gpt("fit", *common, *name, "--trainer.max_steps", stop)
        resumed = loads(lightning_gpt("fit", *common, *name, "--trainer.max_steps", 8, "--ckpt_path", "last"))
        assert [step for step, _ in resumed] == [step for step, _ in whole] == [4, 8]
        assert resumed == whole


def test_a_router_that_the_loss_does_not_reach_is_told_of(lightning_gpt):
    with pytest.warns(UserWarning, match="the loss never reaches the router: set renormalize=false"):
        lightning_gpt("fit", settings(top_k=1), "--trainer.max_steps", 1)
