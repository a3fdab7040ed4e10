import io
import itertools
import math
import pickle

import jsonargparse
import pytest
import torch
from torch import nn

from lightning_gpt.optim import WSD, Constant, Cosine, InverseSqrt, Linear, ScheduleSpec

ALL = [Constant(5), Cosine(5), Linear(5), WSD(5), WSD(5, shape="sqrt"), WSD(5, shape="cosine"), InverseSqrt(5)]


def curve(schedule, total):
    return [schedule.factor(step, total) for step in range(total + 1)]


def nanogpt_rate(it, *, peak, low, warmup, decay):
    """The published recipe: linear warm-up, cosine from peak to low, low afterwards."""
    if it < warmup:
        return peak * (it + 1) / (warmup + 1)
    if it > decay:
        return low
    return low + 0.5 * (1.0 + math.cos(math.pi * (it - warmup) / (decay - warmup))) * (peak - low)


def test_cosine_equals_nanogpt():
    schedule = Cosine(warmup_steps=100, final_ratio=0.1, decay_steps=2000)
    for step in range(2500):
        expected = nanogpt_rate(step, peak=1e-3, low=1e-4, warmup=100, decay=2000)
        assert 1e-3 * schedule.factor(step, 2500) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: type(schedule).__name__)
def test_rises_to_one_and_never_again(schedule):
    factors = curve(schedule, 50)
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[5:]))
    assert min(factors) >= 0


def test_linear_reaches_its_end_exactly():
    assert curve(Linear(0, final_ratio=0.2), 4) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert Linear(0, final_ratio=0.2).factor(9, 4) == 0.2


@pytest.mark.parametrize(("shape", "middle"), [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5)), ("cosine", 0.5)])
def test_wsd_is_flat_and_then_cools_down(shape, middle):
    factors = curve(WSD(10, decay_fraction=0.2, shape=shape, final_ratio=0.1), 100)
    assert factors[10:81] == [1.0] * 71
    assert factors[90] == pytest.approx(0.1 + 0.9 * middle)
    assert factors[100] == pytest.approx(0.1)


def test_inverse_sqrt():
    schedule = InverseSqrt(100)
    assert schedule.factor(100) == 1.0
    assert schedule.factor(400) == 0.5


def test_open_ended_runs():
    assert Constant(2).factor(10**9, -1) == 1.0
    assert Cosine(2, decay_steps=10).factor(10, -1) == pytest.approx(0.1)
    for total in (None, -1):
        with pytest.raises(ValueError, match=r"Cosine needs to know where it ends.*set trainer.max_steps"):
            Cosine(2).factor(5, total)
        with pytest.raises(ValueError, match="Linear needs to know"):
            Linear().build(torch.optim.SGD(nn.Linear(1, 1).parameters()), total)


def test_a_run_shorter_than_its_warmup_warns_and_runs():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    with pytest.warns(UserWarning, match="warmup_steps is 100 in a run of 10 steps"):
        Cosine(100).build(optimizer, 10)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1 / 101)


def test_groups_keep_their_own_rates_and_state_resumes():
    def make():
        a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
        return optimizer, WSD(3, decay_fraction=0.5).build(optimizer, 20)

    optimizer, scheduler = make()
    seen = []
    saved = None
    for step in range(20):
        if step == 7:
            saved = io.BytesIO()
            torch.save((optimizer.state_dict(), scheduler.state_dict()), saved)
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    expected = [[WSD(3, decay_fraction=0.5).factor(step, 20) * lr for lr in (1.0, 0.1)] for step in range(20)]
    assert seen == [pytest.approx(rates) for rates in expected]

    resumed, again = make()
    saved.seek(0)
    optimizer_state, scheduler_state = torch.load(saved, weights_only=True)
    resumed.load_state_dict(optimizer_state)
    again.load_state_dict(scheduler_state)
    rest = []
    for _ in range(7, 20):
        rest.append([group["lr"] for group in resumed.param_groups])
        resumed.step()
        again.step()
    assert rest == seen[7:]


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: type(schedule).__name__)
def test_can_be_pickled_and_state_holds_no_function(schedule):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = schedule.build(optimizer, 50)
    assert scheduler.state_dict()["lr_lambdas"] == [{}]
    assert curve(pickle.loads(pickle.dumps(schedule)), 50) == curve(schedule, 50)
    assert pickle.loads(pickle.dumps(scheduler.lr_lambdas[0]))(7) == schedule.factor(7, 50)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(-1), "warmup_steps is -1; set it to 0"),
        (lambda: Cosine(10, decay_steps=10), "decay_steps is 10, within the warm-up"),
        (lambda: Linear(0, final_ratio=1.5), "final_ratio is 1.5; give a fraction"),
        (lambda: WSD(decay_fraction=0.0), "decay_fraction is 0.0; set it above 0"),
        (lambda: WSD(shape="step"), "shape is 'step'; choose one of linear, sqrt, cosine"),
        (lambda: InverseSqrt(0), "warmup_steps is 0; set it to at least 1"),
    ],
)
def test_refuses_bad_settings_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_yaml_chooses_a_schedule():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--schedule", type=ScheduleSpec)
    chosen = {"class_path": "lightning_gpt.optim.WSD", "init_args": {"warmup_steps": 20, "shape": "sqrt"}}
    spec = parser.instantiate(parser.parse_object({"schedule": chosen})).schedule
    assert isinstance(spec, WSD)
    assert (spec.warmup_steps, spec.shape) == (20, "sqrt")
