"""Exercises of 03, training."""

from __future__ import annotations

from typing import Any

from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.judging import close, equal, function, number, same, untouched
from lightning_gpt.learning.runs import Study, at_least, findings, healthy, lowest, opened


def check_rates(answer: dict) -> None:
    """Too low, healthy, too high."""
    for key, rule in (("low", "rate_too_low"), ("high", "rate_too_high")):
        run = opened(answer, key, finished=False)
        found = findings(run)
        if rule not in found:
            raise Wrong(f"{key}: diagnose says {', '.join(found) or 'healthy'} of {run.directory}")
    middle = opened(answer, "middle")
    at_least(middle, 100)
    healthy(middle)


def check_clipping(answer: dict) -> None:
    """Without clipping, then with a warm-up."""
    bare, warm = opened(answer, "without_clipping", finished=False), opened(answer, "with_warmup")
    for run in (bare, warm):
        if run.settings.get("trainer.gradient_clip_val"):
            raise Wrong(f"{run.directory} was trained with clipping: --trainer.gradient_clip_val null")
    if (warm.settings.get("model.schedule.warmup_steps") or 0) < 100:
        raise Wrong(f"{warm.directory} has no warm-up of 100 steps")
    if "optim/gradient_norm" not in bare.series:
        raise Wrong(f"{bare.directory} has not logged optim/gradient_norm")
    norm = bare.series["optim/gradient_norm"]
    close("largest_norm_at", answer.get("largest_norm_at"), float(norm.steps[norm.values.argmax()]), 0, 0.5)


def check_milestone(answer: dict) -> str:
    """Below 1.0, and where the validation loss turned."""
    run = opened(answer)
    if lowest(run, "train/loss") >= 1.0:
        raise Wrong(f"the training loss of {run.directory} reached {lowest(run, 'train/loss'):.3f}, not below 1.0")
    val = run.series["val/loss"]
    close("val_turned_at", answer.get("val_turned_at"), float(val.steps[val.values.argmin()]), 0, 0.5)
    equal("ship", answer.get("ship"), "best")
    return f"training loss {lowest(run, 'train/loss'):.3f}, validation {lowest(run, 'val/loss'):.3f} at its best"


def check_seconds(answer: dict) -> None:
    """As many seconds, three seeds."""
    study = Study(answer)
    budget = str(study.content.get("budget", ""))
    if " s " not in f"{budget} ":
        raise Wrong(f"the experiment's budget is {budget or 'not given'}: give seconds")
    study.needs(2, 3)
    names = sorted(study.values)
    muon = [name for name in names if "muon" in name.lower()]
    if not muon or len(muon) == len(names):
        raise Wrong(f"variants are {', '.join(names)}: name one with muon in it and one without")
    best = study.best()
    equal("winner", answer.get("winner"), best)


ADAMW_STUB = '''
import torch


def adamw_step(parameters, gradients, states, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    """One step of AdamW (Loshchilov & Hutter, 2019) for a list of tensors; decay on matrices alone (2 dimensions).

    Args:
        parameters, gradients: lists of tensors, which are left as they are.
        states: list of (first moment, second moment), zeros before the first step.
        step: 1 for the first step.

    Returns:
        new parameters, new states.
    """
    raise NotImplementedError


if __name__ == "__main__":
    w = torch.tensor([[1.0, -2.0]])
    (new,), _ = adamw_step([w], [torch.tensor([[0.5, 0.5]])], [(w * 0, w * 0)], 1, 0.1, weight_decay=0.0)
    print("the first step moves by the rate, whatever the gradient:", new, "wanted [[0.9, -2.1]]")
'''


def reference_adamw(
    parameters: list,
    gradients: list,
    states: list,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> tuple[list, list]:
    """torch.optim.AdamW, given these states."""
    import torch

    moved, after = [], []
    for weight, gradient, (first, second) in zip(parameters, gradients, states):
        weight = torch.nn.Parameter(weight.detach().clone())
        weight.grad = gradient.clone()
        decay = weight_decay if weight.ndim >= 2 else 0.0
        optimizer = torch.optim.AdamW([weight], lr, betas, eps, decay)
        moments = {"exp_avg": first.clone(), "exp_avg_sq": second.clone()}
        optimizer.state[weight] = {"step": torch.tensor(float(step - 1)), **moments}
        optimizer.step()
        moved.append(weight.detach())
        after.append((optimizer.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg_sq"]))
    return moved, after


def check_adamw(answer: Any) -> None:
    """Twenty steps on a small network beside torch's."""
    import torch

    mine = function(answer, "adamw_step")
    for settings in ({"lr": 3e-3}, {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.5}):
        weights = [torch.randn(4, 3), torch.randn(4), torch.randn(2, 5)]
        ours = theirs = weights
        states = other = [(torch.zeros_like(one), torch.zeros_like(one)) for one in weights]
        for step in range(1, 21):
            gradients = [torch.randn_like(one) * (step % 3 + 0.01) for one in weights]
            before = ours[0].clone()
            found = mine(ours, gradients, states, step, **settings)
            if not isinstance(found, tuple) or len(found) != 2 or len(found[0]) != 3 or len(found[1]) != 3:
                raise Wrong("adamw_step: two lists are wanted, new parameters and new states")
            untouched("a parameter", before, ours[0])
            ours, states = found
            theirs, other = reference_adamw(theirs, gradients, other, step, **settings)
            for place, (a, b) in enumerate(zip(ours, theirs)):
                kind = "matrix" if b.ndim == 2 else "vector"
                same(f"parameter {place} (a {kind}) after step {step}", a, b, 1e-6)


COSINE_STUB = '''
import math


def factor(step, warmup_steps, total_steps, final_ratio):
    """What the peak learning rate is multiplied by in the update that follows `step` updates.

    While step < warmup_steps it is (step + 1) / (warmup_steps + 1); then half a cosine goes from 1 at warmup_steps
    down to final_ratio at total_steps, and it stays there.
    """
    raise NotImplementedError


if __name__ == "__main__":
    print([round(factor(step, 4, 20, 0.1), 3) for step in (0, 3, 4, 12, 20, 25)])
    print([0.2, 0.8, 1.0, 0.55, 0.1, 0.1], "is wanted")
'''


def reference_factor(step: int, warmup_steps: int, total_steps: int, final_ratio: float) -> float:
    """optim's Cosine."""
    from lightning_gpt.optim.schedules import Cosine

    return Cosine(warmup_steps, final_ratio).factor(step, total_steps)


def check_cosine(answer: Any) -> None:
    """Every step of several schedules."""
    mine = function(answer, "factor")
    for settings in ((4, 20, 0.1), (0, 10, 0.0), (10, 11, 0.5), (100, 1000, 0.1)):
        for step in (*range(0, 14), settings[0], settings[1] // 2, settings[1] - 1, settings[1], settings[1] + 7):
            what = f"factor({step}, {', '.join(map(str, settings))})"
            close(what, mine(step, *settings), reference_factor(step, *settings), 1e-9)


CLIP_STUB = '''
import torch


def clip(gradients, limit):
    """Scales all gradients alike so that the norm of all of them together is at most `limit`.

    Args:
        gradients: list of tensors, which are left as they are.
        limit: of the 2-norm over all elements of all tensors.

    Returns:
        list of tensors, and the norm before.
    """
    raise NotImplementedError


if __name__ == "__main__":
    clipped, norm = clip([torch.tensor([3.0]), torch.tensor([4.0])], 1.0)
    print(clipped, norm, "wanted [0.6], [0.8] and 5")
'''


def reference_clip(gradients: list, limit: float) -> tuple[list, float]:
    """parallel/gradients.py's norm, and the scaling."""
    from lightning_gpt.parallel.gradients import global_norm

    norm = float(global_norm(gradients))
    return [one * min(1.0, limit / norm) if norm else one for one in gradients], norm


def check_clip(answer: Any) -> None:
    """Above the limit, below it, and nothing but zeros."""
    import torch

    mine = function(answer, "clip")
    for scale, limit in ((5.0, 1.0), (0.001, 1.0), (2.0, 0.25), (0.0, 1.0)):
        gradients = [scale * torch.randn(3, 2), scale * torch.randn(5)]
        before = gradients[0].clone()
        found = mine(gradients, limit)
        untouched("a gradient", before, gradients[0])
        if not isinstance(found, tuple) or len(found) != 2:
            raise Wrong("clip: a list and a number are wanted")
        wanted, norm = reference_clip(gradients, limit)
        where = f"gradients of norm {norm:.3g}, limit {limit:g}"
        close(f"the norm, {where}", number("the norm", found[1]), norm, 1e-4)
        for a, b in zip(found[0], wanted):
            same(f"clipped {where}", a, b, 1e-4)


EXERCISES = (
    Exercise(
        1,
        "Three rates",
        "run",
        "Three runs of 200 steps with AdamW at 1e-5, 3e-3 and 0.3: `lightning-gpt diagnose` should call the first too "
        "low, the last too high and the second healthy.",
        "low:      # run, such as runs/ex03_1_low\nmiddle:   # run\nhigh:     # run",
        check_rates,
        (
            "--model.optimizer.lr sets the rate; log every 5 steps, so that there is something to judge.",
            "If the middle one is not healthy, read the finding: its advice names a setting.",
        ),
        "rates",
    ),
    Exercise(
        1,
        "Without clipping",
        "run",
        "Take clipping out of a run at 1e-2, find the logged step with the largest optim/gradient_norm, then train "
        "again "
        "with 100 steps of warm-up, still without clipping.",
        "without_clipping:   # run\nlargest_norm_at:    # step\nwith_warmup:        # run",
        check_clipping,
        (
            "--trainer.gradient_clip_val null, --model.schedule.warmup_steps 100.",
            "Each line of metrics.jsonl is a JSON object with its step.",
        ),
        "clipping",
    ),
    Exercise(
        2,
        "Below 1.0",
        "run",
        "The first milestone: a training loss below 1.0 nat per character. At which step was the validation loss "
        "least, "
        "and which checkpoint would you ship, best or last?",
        "run:\nval_turned_at:   # step\nship:            # best or last",
        check_milestone,
        (
            "configs/pretrain/shakespeare_milestone.yaml; its header says how long it takes.",
            "The training loss falls on while the network learns its text by heart.",
        ),
        "milestone",
    ),
    Exercise(
        2,
        "Seconds, not steps",
        "run",
        "AdamW against Muon with the same number of seconds each and three seeds. Which variant wins?",
        "experiment:   # folder with results.json\nwinner:       # name of the variant",
        check_seconds,
        (
            "budget: {seconds: 60} in a copy of experiments/03_training/optimizers.yaml.",
            "The lower mean of the metric wins; the report says whether the difference can be told from chance.",
        ),
        "seconds",
    ),
    Exercise(
        3,
        "AdamW",
        "component",
        "Write the optimizer. After 20 steps it must equal torch.optim.AdamW within 1e-6, with decay on matrices "
        "alone.",
        ADAMW_STUB,
        check_adamw,
        (
            "m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2; both divided by 1 - b^step before use.",
            "Decay is w (1 - lr weight_decay), beside the update and not through the gradient.",
            "eps is added to the square root of the corrected second moment.",
        ),
        "adamw",
        lambda: {"adamw_step": reference_adamw},
    ),
    Exercise(
        2,
        "Warm-up and cosine",
        "component",
        "The schedule that GPT-3, Chinchilla and nanoGPT share.",
        COSINE_STUB,
        check_cosine,
        (
            "progress = (step - warmup) / (total - warmup), held at 1 at most.",
            "(1 + cos(pi progress)) / 2 goes from 1 to 0; then stretch it to end at final_ratio.",
        ),
        "cosine",
        lambda: {"factor": reference_factor},
    ),
    Exercise(
        2,
        "Clipping by the global norm",
        "component",
        "One norm for all gradients: their direction stays, their length does not.",
        CLIP_STUB,
        check_clip,
        (
            "The squares of all tensors are summed before the one square root.",
            "Scale by limit / norm only where that is below 1; think of norm 0.",
        ),
        "clip",
        lambda: {"clip": reference_clip},
    ),
)
