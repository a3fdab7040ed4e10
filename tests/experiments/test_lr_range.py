"""The learning-rate range test, on a problem whose divergence is known and on the tiny recipe."""

import json
import math
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_gpt.callbacks import TrainingMetrics
from lightning_gpt.callbacks.measurement import Finished, RateSweep
from lightning_gpt.optim import Constant, OptimizerSpec
from lightning_gpt.optim.rate_range import has_diverged, read_range, sweep_rates
from lightning_gpt.tasks.base import Task

CURVATURE = 8.0


class TwoGroups(OptimizerSpec):
    def build(self, module):
        groups = [{"params": [module.weight], "lr": 0.1}, {"params": [module.bystander], "lr": 0.025}]
        return torch.optim.SGD(groups)


class Quadratic(Task):
    """L(w) = CURVATURE w^2 / 2: gradient descent multiplies w by 1 - rate * CURVATURE."""

    training_flops_per_token = 0.0

    def __init__(self):
        super().__init__(TwoGroups(), Constant(warmup_steps=7))
        self.weight, self.bystander = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.double()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        loss = 0.5 * CURVATURE * self.weight.square().sum() + 0.0 * self.bystander.sum()
        return self.mean_loss(loss, torch.tensor(1))


def test_sgd_on_a_quadratic_turns_at_two_over_the_curvature(tmp_path):
    module, sweep = Quadratic(), RateSweep(low=1e-3, high=10.0, steps=81)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=81,
        max_epochs=-1,
        log_every_n_steps=1,
        logger=False,
        callbacks=[TrainingMetrics(), sweep],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with pytest.raises(Finished):
        trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(200, 1)))
    rates, losses = sweep.rates, sweep.losses
    assert [first for first, _ in module.seen] == pytest.approx(rates[: len(losses)]), "the schedule gives way"
    assert all(second == pytest.approx(first / 4) for first, second in module.seen), "groups keep their proportion"
    exact, weight = [], 1.0
    for rate in rates:
        exact.append(0.5 * CURVATURE * weight**2)
        weight *= 1 - rate * CURVATURE
    assert losses == pytest.approx(exact[: len(losses)], rel=1e-6)
    test = read_range(rates, losses, rates[len(losses) - 1], window=1)
    edge = rates.index(test.lowest)
    assert rates[edge - 1] < 2 / CURVATURE <= rates[edge], "the loss rises from the first rate above 2 / L"
    first_over = next(step for step in range(81) if exact[step] > 4 * min(exact[: step + 1]))
    assert len(losses) == first_over + 1, "ended as soon as it had diverged"


def test_rates_grow_by_one_factor():
    rates = sweep_rates(1e-4, 1.0, 41)
    assert (rates[0], rates[-1], len(rates)) == (1e-4, 1.0, 41)
    assert [b / a for a, b in pairwise(rates)] == pytest.approx([10**0.1] * 40)
    for low, high in ((0, 1), (2, 1), (1e-3, math.inf)):
        with pytest.raises(ValueError, match="0 < low < high"):
            sweep_rates(low, high, 100)
    with pytest.raises(ValueError, match="steps=3 must be at least 10"):
        sweep_rates(1e-3, 1, 3)


def test_what_is_read_off_a_known_curve():
    """A logistic fall around 1e-3, whose slope in log rate is steepest there, then a rise from 1e-2 on."""
    rates = sweep_rates(1e-6, 1.0, 121)
    losses = [
        4 - 1 / (1 + math.exp(-4 * math.log10(rate / 1e-3))) + 5 * max(0.0, math.log10(rate / 1e-2)) ** 2
        for rate in rates
    ]
    test = read_range(rates, losses, None)
    assert test.steepest == pytest.approx(1e-3, rel=0.13)  # a step of the sweep is 12%
    assert 5e-3 < test.lowest < 1.7e-2  # the average rounds the corner off
    assert len(test.smooth) == len(losses) and max(abs(a - b) for a, b in zip(test.smooth[:80], losses)) < 0.1
    with pytest.raises(ValueError, match=r"diverged after 5 steps, at a rate of 1.58489e-06: begin lower"):
        read_range(rates, losses[:5], rates[5])


def test_what_has_diverged():
    assert has_diverged([4.0, 2.0, 8.1]) and not has_diverged([4.0, 2.0, 7.9])
    assert has_diverged([4.0, math.nan]) and has_diverged([math.inf])


def test_the_command(lightning_gpt, tmp_path, recipe, capsys):
    from lightning_gpt.cli import main

    main(["experiment", "lr_range", "-c", str(recipe), "--low", "1e-4", "--steps", "30", "--data.batch_size", "2"])
    told = capsys.readouterr().out
    assert "suggested learning rate: " in told and "runs/lr_range/lr_range.png" in told
    found = json.loads((tmp_path / "runs/lr_range/lr_range.json").read_text())
    count = len(found["losses"])
    assert 10 < count <= 30 and found["rates"][0] == 1e-4 and len(found["smooth"]) == count
    assert 1e-4 <= found["steepest"] <= found["lowest"] <= found["rates"][-1] * 1.001
    assert "--data.batch_size 2" in found["command"]
    assert (tmp_path / "runs/lr_range/lr_range.png").stat().st_size > 5000
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["lr_range"], "nothing of the model is kept"


def test_a_sweep_that_begins_too_high(lightning_gpt, recipe, capsys):
    from lightning_gpt.cli import main

    wild = ["--model.optimizer", "lightning_gpt.optim.SGD", "--trainer.gradient_clip_val", "1e30"]
    with pytest.raises(SystemExit) as stop:
        main(["experiment", "lr_range", "-c", str(recipe), *wild, "--low", "1e20", "--high", "1e30"])
    assert stop.value.code == 2 and "begin lower" in capsys.readouterr().err
