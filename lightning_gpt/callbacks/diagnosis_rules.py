"""The sicknesses of a training run, each a rule over its logged numbers.

A rule is a function of Signals that returns a Finding or None, and raises CannotJudge where the run is too short or has
not logged what it needs. Levels are medians over quarters of the run after its warm-up, so that neither the logging
interval nor single spikes matter. What a threshold is for, and where it comes from, is said beside it; "measured" are
GPTs of 0.1M to 3M parameters on Shakespeare, whose healthy runs number some two hundred.
"""

import math

import numpy as np

from lightning_gpt.callbacks.diagnosis_levels import (
    NEAR,
    POINTS,
    RATIO,
    RATIO_HIGH,
    around,
    better_rate,
    binned,
    course,
    level_in_words,
    lower_rate,
    rounded,
    sentence,
    steadily_falling,
    trivial_level,
)
from lightning_gpt.callbacks.diagnosis_report import RULES, SEVERITIES, CannotJudge, Finding, Report, rule
from lightning_gpt.callbacks.diagnosis_signals import Signals

LITTLE = 0.9
"""Share of the unigram entropy above which a network has learnt hardly more than frequencies. Bigrams are at 0.75."""
ROSE = 1.1
"""Times its start or its best level: no healthy run's training loss has been seen to rise by a tenth."""
MOVEMENT = 0.3
"""Sum of all update ratios, below which weights are still their random start: healthy runs, however short, pass 0.5."""
DEPTH = 1e-3
"""First block's gradient over the last one's: 0.2 to 20 in healthy runs, 1e-7 where post-norm has broken down."""
NOISY, SWING = 0.03, 0.5
"""Noise of the logged loss over its level, and over what it has fallen: a loss that swings as much as it learns."""
TOKEN_SPREAD = 0.45
"""Standard deviation of a token's loss over the mean loss, from which sampling noise is expected (measured 0.4)."""
BEYOND_SAMPLING = 3.0
"""Times the sampling noise: what swings more does not do so for want of tokens."""
RISE, GAP = 0.02, 0.08
"""Of the validation loss over its best; of the gap to the training loss, as a share of the level."""
DEAD = 0.3
"""Share of a layer's units: healthy networks with ReLU have up to 0.12 that no token of a batch turns on."""
SPIKE, SPIKES = 20.0, 0.05
"""A spike's gradient norm over the median, and the share of intervals that have one: healthy runs have single ones."""
GROWTH, BEYOND_CLIP = 5.0, 8.0
"""Of the gradient norm from the second quarter to the last; over the norm that it is clipped to, in nearly all
steps."""
WAIT = 0.25
"""Share of the wall time: a loader that keeps up is below 0.1."""
CAUSES = ("rate_too_high", "rate_too_low", "vanishing_gradients")
"""Why a loss does not fall."""


def diagnose(run: Signals) -> Report:
    """Applies every rule."""
    report = Report([], [], {})
    for name, one in RULES.items():
        lacking = [need for need in one.needs if not len(run[need])]
        try:
            if lacking:
                raise CannotJudge(f"not logged: {', '.join(lacking)}")
            finding = one.judge(run)
        except CannotJudge as reason:
            report.unchecked[name] = str(reason)
            continue
        report.checked.append(name)
        if finding is not None:
            report.findings.append(finding)
    causes = [one.rule for one in report.findings if one.rule in CAUSES]
    for finding in report.findings:
        if finding.rule == "plateau" and causes:
            finding.severity, finding.advice = "warning", f"The cause is named: {', '.join(causes)}"
    report.findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return report


# ---- 1: the loss does not fall


@rule("loss")
def rate_too_high(run: Signals) -> Finding | None:
    """The loss rises, or stays where only frequencies are known while a step moves weights by their own size."""
    levels = course(run)
    ratio = run.peak_ratio
    rose = max(levels.worst / levels.start, levels.end / levels.best) > ROSE
    high = ratio is not None and ratio > RATIO_HIGH
    stuck = not run.facts.pretrained and levels.end > LITTLE * trivial_level(run, levels)
    by_rate = rose and (ratio is None or ratio > RATIO / 10)  # weights that hardly move cannot be thrown far
    if not by_rate and not (high and stuck):
        return None
    what = f"the training loss rose to {levels.worst:.2f}" if rose else "the training loss hardly falls"
    message = f"{what} and is at {level_in_words(run, levels.end)}"
    evidence = {"loss": levels.end, "highest": levels.worst, "lowest": levels.best}
    if ratio is not None:
        message += f"; at the rate of {run.peak_lr:g} a step moves the weights by {ratio:.2g} of their size"
        evidence |= {"lr": run.peak_lr, "update_over_weights": ratio}
    if high:
        message += f", {ratio / RATIO:.0f} times what is usual"
    advice = f"{sentence(lower_rate(run))}{'' if high else ', and warm up longer'}"
    return Finding("rate_too_high", "critical", run.last_step, message, advice, evidence, since=run.warmup_end)


@rule("loss")
def rate_too_low(run: Signals) -> Finding | None:
    """The weights stay at their random start."""
    levels = course(run)
    if run.facts.pretrained or levels.end < (1 - NEAR) * trivial_level(run, levels) or vanishing(run):
        return None
    movement = run.movement
    if movement is None:
        if not (levels.start - levels.end < 2 * NEAR * levels.start and steadily_falling(run)):
            return None
        message, evidence = (
            f"the training loss falls steadily, but from {levels.start:.2f} to {levels.end:.2f} only",
            {},
        )
        advice = f"Raise the learning rate tenfold{f' ({rounded(10 * run.peak_lr)})' if run.peak_lr else ''}"
    else:
        movement *= max(run.facts.max_steps or 0, run.last_step) / run.last_step
        if movement > MOVEMENT:
            return None
        message = (
            f"in the whole run the weights move by {movement:.2g} of their size at most, and the training loss is at "
            f"{level_in_words(run, levels.end)}"
        )
        evidence, advice = {"movement": movement}, f"Raise the learning rate: {better_rate(run)}"
        if (run.facts.init_std or 0) > 0.1:
            advice += ", or start from smaller weights (model.config.init_std: 0.02)"
    return Finding("rate_too_low", "critical", run.last_step, message, advice, evidence | {"loss": levels.end})


def vanishing(run: Signals) -> bool:
    """Whether the first block's gradient, or all of it, is next to nothing."""
    depth, norm = run["gradient_depth"], run["gradient_norm"]
    shallow = len(depth) > 2 and depth.part(0.5, 1).median < DEPTH
    return shallow or (len(norm) > 2 and norm.part(0.5, 1).median < DEPTH)


@rule("loss", "gradient_norm")
def vanishing_gradients(run: Signals) -> Finding | None:
    """The loss stays, and the gradient fades on its way to the first layers."""
    levels = course(run)
    if not vanishing(run) or levels.end < LITTLE * trivial_level(run, levels):
        return None
    depth, norm = run["gradient_depth"], run["gradient_norm"].part(0.5, 1).median
    evidence = {"gradient_norm": norm, "loss": levels.end}
    message = f"the training loss stays at {level_in_words(run, levels.end)} and the gradient's norm is {norm:.2g}"
    if len(depth):
        last, began = depth.part(0.5, 1).median, float(depth.values[0])
        evidence |= {"first_over_last_layer": last, "at_the_start": began}
        message += f"; the first block's gradient is {last:.0e} of the last one's"
    else:  # not measured of this task's networks, whose layers are no row of blocks
        began = evidence["at_the_start"] = float(run["gradient_norm"].values[0])
    if began > 0.1:  # it was whole at first
        further = ", warm up longer, or use norm_place: pre" if len(depth) else ", or further, and warm up longer"
        advice = (
            f"At the start it was {began:.2g}: training broke it. Lower the rate to a third "
            f"({rounded(run.peak_lr / 3) if run.peak_lr else '?'}){further}"
        )
    else:
        advice = "It is so from the start: use norm_place: pre, fewer layers, or the default initialisation"
    return Finding("vanishing_gradients", "critical", run.last_step, message, advice, evidence, "gradient_depth")


# ---- 2: the loss oscillates


@rule("loss")
def oscillating_loss(run: Signals) -> Finding | None:
    """Between logged losses there is as much difference as the run has made."""
    levels = course(run)
    loss = binned(run.judged_loss)
    level, noise, fall = loss.median, loss.noise, max(levels.early - levels.end, 0.0)
    if noise < NOISY * level or noise < SWING * fall:
        return None
    message = f"the training loss swings by {noise:.2f} about {level:.2f}, and has fallen by {fall:.2f}"
    evidence = {"swing": noise, "loss": level, "fall": fall}
    steps = float(np.median(np.diff(loss.steps)))
    if run.batch_tokens is None:
        advice = "Either batches are too small or the rate is too high: try twice the batch, then half the rate"
    else:
        expected = TOKEN_SPREAD * level / math.sqrt(run.batch_tokens * steps)
        evidence |= {"sampling_noise": expected, "tokens_per_step": run.batch_tokens}
        if noise > BEYOND_SAMPLING * expected:
            message += f", {noise / expected:.0f} times the noise of so many tokens"
            advice = f"It is not the batch: {lower_rate(run)}, or warm up longer"
        else:
            needed = 2 ** math.ceil(math.log2((noise / (NOISY / 2 * level)) ** 2))
            message += f": a step sees {run.batch_tokens:.0f} tokens, whose mean loss is that uncertain"
            advice = f"Enlarge the batch about {needed} times (data.batch_size or trainer.accumulate_grad_batches)"
    return Finding("oscillating_loss", "warning", run.last_step, message, advice, evidence)


# ---- 3: the network learns its training text by heart


@rule("loss", "val_loss")
def overfitting(run: Signals) -> Finding | None:
    """The validation loss rises over its best, or stays while the training loss runs away from it."""
    val, loss = run["val_loss"], run["loss"]
    if len(val) < 3:
        raise CannotJudge(f"too few validations: {len(val)}, needs 3")
    train = np.array([around(loss, step) for step in val.steps])
    best = int(np.argmin(val.values))
    rise = float(val.values[-1] / val.values[best] - 1)
    fell = float(train[best] - train[-1]) > NEAR / 2 * train[best]
    gaps = (val.values - train) / val.values
    middle = len(val) // 2
    widened = float(gaps[-1] - gaps[middle])
    kept_on = float(train[middle] - train[-1]) > NEAR * train[middle]
    stood = float(val.values[middle] - val.values[-1]) < 0.25 * float(train[middle] - train[-1])
    rising = best < len(val) - 1 and rise > RISE and fell
    if not (rising or (widened > GAP and kept_on and stood)):
        return None
    step = int(val.steps[best])
    evidence = {"val_loss": float(val.values[-1]), "best_val_loss": float(val.values[best]), "best_step": step}
    message = (
        f"the validation loss was best at step {step} ({val.values[best]:.3f}) and is {val.values[-1]:.3f}, while the "
        f"training loss fell from {train[best if rising else middle]:.3f} to {train[-1]:.3f}"
    )
    tokens = run["tokens"]
    if run.facts.train_tokens and len(tokens):
        passes = float(tokens.values[-1]) / run.facts.train_tokens
        message += f"; the training text was read {passes:.2g} times"
        evidence["passes"] = passes
    advice = (
        f"Take the checkpoint of step {step} (checkpoints/best.ckpt), train on more text, or set model.config.dropout "
        "to 0.1 or 0.2"
    )
    return Finding("overfitting", "warning", run.last_step, message, advice, evidence, "val_loss", since=step)


# ---- 4, 5: units and gradients


@rule("dead_units_worst")
def dead_units(run: Signals) -> Finding | None:
    """Units of a layer for which the activation is off, and so its derivative, on whole batches."""
    worst = run["dead_units_worst"].part(0.5, 1)
    if worst.median < DEAD:
        return None
    overall = run["dead_units"].part(0.5, 1).median
    layers = run["dead_units_layer"].part(0.5, 1).values
    layer = int(np.bincount(layers.astype(int)).argmax()) if len(layers) else 0
    message = (
        f"{worst.median:.0%} of the hidden units of blocks.{layer}.feed_forward are off for every token of a batch "
        f"({overall:.0%} of all layers'): they give nothing and learn nothing"
    )
    advice = "Use gelu or swiglu (model.config.feed_forward), lower the learning rate, or start anew: they stay dead"
    if run.peak_ratio and run.peak_ratio > RATIO_HIGH:
        advice = f"The rate has killed them: {better_rate(run)}, in a new run"
    evidence = {"worst_layer": worst.median, "all_layers": overall, "layer": layer}
    return Finding("dead_units", "warning", run.last_step, message, advice, evidence, "dead_units_worst")


@rule("gradient_norm")
def exploding_gradients(run: Signals) -> Finding | None:
    """The norm grows, has spikes in many intervals, or is far above the clipping limit all the time."""
    norm = run["gradient_norm"].after(run.warmup_end)
    if len(norm) < POINTS:
        raise CannotJudge(f"too short: {len(norm)} logged gradient norms after the warm-up, needs {POINTS}")
    largest = run["gradient_norm_max"].after(run.warmup_end)
    largest = largest if len(largest) else norm
    before, last = norm.part(0.25, 0.5).median, norm.part(0.75, 1).median
    median = norm.median
    spikes = float(np.mean(largest.values > SPIKE * median))
    clip = run.facts.clip
    clipped = run["clipped"].after(run.warmup_end)
    always = clipped.median if len(clipped) else float(np.mean(norm.values > (clip or math.inf)))
    evidence = {"median": median, "largest": float(largest.values.max()), "last_quarter": last, "spikes": spikes}
    lower = lower_rate(run)
    tighter = float(rounded(max(before, 0.1)))
    clip_at = f"set trainer.gradient_clip_val to {min(tighter, clip) if clip else 1.0:g}"
    if len(norm) >= 2 * POINTS and last > GROWTH * before and last > (clip or 0):
        message = f"the gradient's norm grew from {before:.2g} to {last:.2g}"
        advice = f"{sentence(lower)}{'' if clip else f' and {clip_at}'}"
    elif spikes > SPIKES and spikes * len(largest) >= 3:
        message = (
            f"the gradient's norm spikes to {evidence['largest']:.3g}, {SPIKE:.0f} times its median of {median:.2g} or "
            f"more in {spikes:.0%} of the intervals"
        )
        if clip and clip <= tighter:
            advice = f"They are clipped to {clip:g} already: {lower}, or look at the batches of those steps"
        else:
            advice = f"{sentence(clip_at)}; if the spikes stay, {lower} or look at the batches of those steps"
    elif clip and always > 0.95 and median > BEYOND_CLIP * clip:
        message = (
            f"the gradient is clipped in {always:.0%} of the steps, from a norm of {median:.3g} to {clip:g}: its size "
            "says nothing any more"
        )
        advice = f"{sentence(lower)}; if the loss falls well, raise trainer.gradient_clip_val to {rounded(median)}"
        evidence["clipped"] = always
    else:
        return None
    return Finding("exploding_gradients", "warning", run.last_step, message, advice, evidence, "gradient_norm")


# ---- 6: numbers that are none


@rule()
def non_finite(run: Signals) -> Finding | None:
    """In a loss, or where training stopped for it. A gradient's norm alone may be infinite: with fp16 such steps are
    skipped."""
    stop = run.found_non_finite
    if stop:
        return non_finite_finding(int(stop.get("step", run.last_step)), stop.get("place"), stop.get("message", ""))
    for signal in ("loss", "val_loss"):
        name = run.name(signal)
        bad = np.flatnonzero(~np.isfinite(run.raw[name].values)) if name else []
        if len(bad):
            step = int(run.raw[name].steps[bad[0]])
            return non_finite_finding(step, None, f"{name} is {run.raw[name].values[bad[0]]} at step {step}")
    if not len(run["loss"]):
        raise CannotJudge("not logged: loss")
    return None


def non_finite_finding(step: int, place: str | None, message: str) -> Finding:
    """That a number ceased to be finite.

    Args:
        step: optimizer step.
        place: phrase of locate_non_finite; None: not known.
        message: what was seen.
    """
    if place is not None and place not in message:
        message += f"; the first that is not finite is {place}"
    advice = "Go on from the last checkpoint with half the learning rate, clip the gradient, use bf16 rather than fp16"
    if place is not None and "gradient" in place:
        advice += "; look for a square root, logarithm or division at 0 in that module"
    return Finding("non_finite", "critical", step, message, advice, {"step": step}, since=step)


# ---- 7: the loader


@rule("data_wait")
def data_bottleneck(run: Signals) -> Finding | None:
    """The share of wall time that passes between a step and the next batch."""
    wait = run["data_wait"]
    if len(wait) < 3:
        raise CannotJudge(f"too short: {len(wait)} measurements of the wait, needs 3")
    share = wait.part(0.1, 1).median
    if share < WAIT:
        return None
    faster = 1 / (1 - share)
    message = f"{share:.0%} of the wall time passes in waiting for batches: without it, {faster:.1f} times the speed"
    advice = "Set data.num_workers, keep the data on a local disk, prepare it beforehand (tokens, sizes)"
    return Finding("data_bottleneck", "warning", run.last_step, message, advice, {"data_wait": share}, "data_wait")


# ---- 8: the loss stays where nothing is known


@rule("loss")
def plateau(run: Signals) -> Finding | None:
    """Outputs that do not depend on the input."""
    levels = course(run)
    if run.uniform is None:
        raise CannotJudge("the size of the vocabulary is not known")
    if not levels.flat or run.facts.pretrained:
        return None
    for name, level, what in (
        ("ln V", run.uniform, "every token is held for equally likely"),
        ("the entropy of the tokens' frequencies", run.facts.unigram, "the context is not used"),
    ):
        if level is not None and abs(levels.end / level - 1) < NEAR:
            message = f"the training loss stays at {levels.end:.3f}, which is {name} ({level:.3f}): {what}"
            advice = (
                "If the rate is right, look at the data: are targets the inputs moved by one, do ids and text belong "
                "together? `lightning-gpt baseline DATA` tells what counting achieves"
            )
            evidence = {"loss": levels.end, "level": level}
            return Finding("plateau", "critical", run.last_step, message, advice, evidence)
    return None
