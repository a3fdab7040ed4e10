"""The rules on courses that are made up: what they take for what, and where they hold back."""

import math

import numpy as np
import pytest

from lightning_gpt.callbacks.diagnosis_report import RULES, Finding
from lightning_gpt.callbacks.diagnosis_rules import diagnose
from lightning_gpt.callbacks.diagnosis_signals import Facts, Series, Signals

FACTS = {"vocab_size": 84, "unigram": 3.33, "max_steps": 1000, "clip": 1.0, "update_per_lr": 50.0}


def rows(loss, every=20, warmup=100, lr=1e-3, **signals):
    """Rows of a run whose loss is a function of the step, or of each signal by its logged name with __ for /."""
    made = []
    for step in range(every, 1001, every):
        row = {"step": step, "train/loss": loss(step), "optim/lr": lr * min(1.0, step / warmup)}
        row |= {"optim/gradient_norm": 0.8, "progress/tokens": 768 * step, "diagnosis/update_ratio": 0.01}
        row |= {name.replace("__", "/"): of(step) for name, of in signals.items()}
        made.append({name: value for name, value in row.items() if value is not None})
    return made


def learning(step, end=1.9):
    return end + (4.43 - end) * math.exp(-step / 150)


def rules(made, **facts):
    return [one.rule for one in diagnose(Signals.of_rows(made, Facts(**FACTS | facts))).findings]


def noisy(course, deviation, seed=0):
    draw = np.random.default_rng(seed)
    return lambda step: course(step) + draw.normal(0, deviation)


def test_a_healthy_course_whatever_the_interval():
    for every in (1, 5, 20, 50, 100):
        made = rows(noisy(learning, 0.45 * 1.9 / math.sqrt(768 * every) * 2), every=every)
        assert rules(made) == []


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_sickness(seed):
    val = noisy(lambda step: learning(step) + 0.02, 0.01, seed + 100)
    made = rows(noisy(learning, 0.03, seed), val__loss=lambda step: val(step) if step % 200 == 0 else None)
    assert rules(made) == []


def test_a_spike_is_no_sickness():
    spiky = {"diagnosis__gradient_norm_max": lambda step: 70.0 if step == 300 else 1.0}
    assert rules(rows(lambda step: learning(step) + (2.0 if step == 300 else 0.0), **spiky)) == []


def test_a_converged_run_is_not_stuck():
    assert rules(rows(lambda step: 1.5 if step > 60 else 4.0)) == []


def test_a_pretrained_network_need_not_fall():
    tuned = rows(lambda step: 3.5 - 0.0001 * step, lr=1e-6)
    assert rules(tuned, pretrained=True) == []
    assert rules(rows(lambda step: 3.5 + 0.002 * step), pretrained=True) == ["rate_too_high"]


def test_too_short_or_too_early_is_said():
    short = Signals.of_rows(rows(learning)[:6], Facts(**FACTS))
    assert diagnose(short).findings == []
    assert "too short" in diagnose(short).unchecked["rate_too_high"]
    early = Signals.of_rows(rows(lambda step: 4.43, every=10, warmup=10)[:20], Facts(**FACTS))
    assert diagnose(early).unchecked["plateau"] == "too early: step 200 of 1000"
    warming = Signals.of_rows(rows(lambda step: 4.43, warmup=1000), Facts(**FACTS))
    assert "too short" in diagnose(warming).unchecked["rate_too_low"]


def test_what_is_not_logged_is_said():
    report = diagnose(Signals.of_rows([{"step": step, "loss": learning(step)} for step in range(20, 1000, 20)]))
    assert report.findings == []
    assert report.unchecked["data_bottleneck"] == "not logged: data_wait"
    assert report.unchecked["plateau"] == "the size of the vocabulary is not known"
    assert {*report.checked} | {*report.unchecked} == {*RULES}


def test_other_names_and_no_facts_do():
    flat = [{"step": s, "train_loss": 6.0 + 0.02 * s, "lr-AdamW": 1.0, "grad_norm": 2.0} for s in range(10, 500, 10)]
    assert [one.rule for one in diagnose(Signals.of_rows(flat)).findings] == ["rate_too_high"]
    slow = [{"step": s, "train_loss": 6.0 - 0.0002 * s, "lr-AdamW": 1e-7, "grad_norm": 2.0} for s in range(10, 500, 10)]
    (finding,) = diagnose(Signals.of_rows(slow)).findings
    assert finding.rule == "rate_too_low"
    assert "1e-06" in finding.advice


def test_reasons_of_a_loss_that_stays():
    def stuck(step):
        return 3.35

    assert rules(rows(stuck)) == ["plateau"]
    assert rules(rows(stuck, lr=0.1)) == ["rate_too_high", "plateau"]
    assert rules(rows(stuck, diagnosis__gradient_depth=lambda step: 1e-7)) == ["vanishing_gradients", "plateau"]
    assert rules(rows(lambda step: 4.43, lr=1e-6, diagnosis__update_ratio=lambda step: 1e-5)) == [
        "rate_too_low",
        "plateau",
    ]


def test_a_gradient_that_training_broke_is_told_from_one_that_never_was():
    """CLIP at 300 times its rate: the norm is 1 at first, and nothing from when all features are alike."""

    def said(norm):
        made = rows(lambda step: 5.55, lr=0.3, optim__gradient_norm=norm)
        bare = [{name: value for name, value in row.items() if "diagnosis" not in name} for row in made]
        (finding,) = diagnose(Signals.of_rows(bare, Facts(max_steps=1000))).findings
        assert finding.rule == "vanishing_gradients"
        return finding.advice

    assert "At the start it was 1.3: training broke it. Lower the rate" in said(lambda step: 1.3 if step < 30 else 1e-4)
    assert "It is so from the start" in said(lambda step: 1e-4)


def test_overfitting_needs_a_training_loss_that_falls():
    def val(step):
        return (2.5 + 0.3 * abs(step - 400) / 400) if step % 100 == 0 else None

    assert rules(rows(learning, val__loss=val)) == ["overfitting"]
    finding = diagnose(Signals.of_rows(rows(learning, val__loss=val), Facts(**FACTS, train_tokens=76800))).findings[0]
    assert finding.since == finding.evidence["best_step"] == 400
    assert finding.evidence["passes"] == 10
    both = rows(lambda step: 1.05 * learning(400) if step > 400 else learning(step), val__loss=val)
    assert "overfitting" not in rules(both)


def test_a_gap_that_grows():
    def falling(step):
        return 3.0 - 0.002 * step

    assert rules(rows(falling, val__loss=lambda step: 2.2 if step % 100 == 0 else None)) == ["overfitting"]
    assert rules(rows(falling, val__loss=lambda step: falling(step) + 0.1 if step % 100 == 0 else None)) == []


def test_gradients_that_grow_or_are_always_clipped():
    assert rules(rows(learning, optim__gradient_norm=lambda step: 0.5 * 1.005**step)) == ["exploding_gradients"]
    clipped = {"optim__gradient_norm": lambda step: 20.0, "diagnosis__clipped": lambda step: 1.0}
    (finding,) = diagnose(Signals.of_rows(rows(learning, **clipped), Facts(**FACTS))).findings
    assert "clipped in 100% of the steps, from a norm of 20 to 1" in finding.message
    assert rules(rows(learning, optim__gradient_norm=lambda step: 3.0, diagnosis__clipped=lambda step: 1.0)) == []


def test_a_limit_that_is_set_is_not_advised_again():
    spikes = {"diagnosis__gradient_norm_max": lambda step: 5e4 if step % 50 == 0 else 600.0}
    high = rows(learning, optim__gradient_norm=lambda step: 600.0, **spikes)
    low = rows(learning, optim__gradient_norm=lambda step: 0.7, **spikes)
    for signals, clip, wanted in (
        (high, 1.0, "They are clipped to 1 already: lower the learning rate"),
        (low, 1.0, "Set trainer.gradient_clip_val to 0.7;"),
        (high, None, "Set trainer.gradient_clip_val to 1;"),
    ):
        (finding,) = diagnose(Signals.of_rows(signals, Facts(**FACTS | {"clip": clip}))).findings
        assert "spikes to 5e+04" in finding.message
        assert finding.advice.startswith(wanted)


def test_nan_in_the_log_is_found():
    (finding,) = diagnose(
        Signals.of_rows(rows(lambda s: learning(s) if s < 500 else math.nan), Facts(**FACTS))
    ).findings
    assert (finding.rule, finding.step) == ("non_finite", 500)
    # fp16 skips such steps
    assert rules(rows(learning, optim__gradient_norm=lambda step: math.inf if step == 500 else 1.0)) == []


def test_advice_is_a_rate_that_moves_weights_by_a_twentieth():
    (finding, _) = diagnose(Signals.of_rows(rows(lambda step: 3.35, lr=0.3), Facts(**FACTS))).findings
    assert finding.evidence["update_over_weights"] == pytest.approx(15)
    assert "300 times what is usual" in finding.message
    assert finding.advice == "Lower the learning rate: try a rate of 0.001"


def test_noise_is_measured_beside_trend_and_spikes():
    draw = np.random.default_rng(0)
    values = 5 - 0.01 * np.arange(2000) + draw.normal(0, 0.2, 2000)
    values[::100] += 50
    assert Series(np.arange(2000), values).noise == pytest.approx(0.2, rel=0.1)


def test_facts_survive_what_they_do_not_know():
    known = Facts(max_steps=5, pretrained=True)
    assert Facts(clip=1.0).merged(known) == Facts(max_steps=5, clip=1.0, pretrained=True)
    assert Facts.of({"max_steps": 5, "later": 1}) == Facts(max_steps=5)
    assert Facts.of(None) == Facts()


def test_every_rule_is_documented_and_has_a_name_that_lasts():
    assert list(RULES) == [
        "rate_too_high",
        "rate_too_low",
        "vanishing_gradients",
        "oscillating_loss",
        "overfitting",
        "dead_units",
        "exploding_gradients",
        "non_finite",
        "data_bottleneck",
        "plateau",
    ]
    assert all(one.judge.__doc__ for one in RULES.values())
    assert Finding("r", "warning", 1, "m", "a").line == "r: m. a"
