"""Exercises of 01, configuration."""

from __future__ import annotations

from typing import Any

from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.judging import close, function, number, same
from lightning_gpt.learning.runs import at_least, has, last, opened, peak_gib, same_but


def check_pair(answer: dict) -> None:
    """Four micro-batches of three windows, and twelve at once."""
    split, whole = opened(answer, "accumulated"), opened(answer, "large")
    has(split, trainer__accumulate_grad_batches=4, data__batch_size=3, trainer__precision="32-true")
    has(whole, data__batch_size=12, trainer__precision="32-true")
    same_but(split, whole, "trainer.accumulate_grad_batches", "data.batch_size")
    for run in (split, whole):
        at_least(run, 100)
    close("val/loss of the accumulated run", last(split, "val/loss"), last(whole, "val/loss"), 3e-5)


def check_count(answer: dict) -> None:
    """GPT-2."""
    from lightning_gpt.nn.flops import body_parameters, matrix_parameters, parameters
    from lightning_gpt.nn.presets import PRESETS

    config = PRESETS["gpt2"]
    close("parameters", answer.get("parameters"), parameters(config), 1e-9)
    rest = body_parameters(config) - matrix_parameters(config)
    close("biases_and_norms", answer.get("biases_and_norms"), rest, 1e-9)


def check_forecast(answer: dict) -> str:
    """The plan's peak beside the run's."""
    run = opened(answer)
    has(run, data__batch_size=512)
    at_least(run, 20)
    said, measured = number("predicted_gib", answer.get("predicted_gib")), peak_gib(run)
    if abs(said / measured - 1) > 0.1:
        raise Wrong(f"predicted_gib: {said:.3g} is {abs(said / measured - 1):.0%} away from what the run took")
    return f"{said / measured - 1:+.1%} from the measured peak"


def check_levers(answer: dict) -> None:
    """The same network and context with less memory."""
    before, after = opened(answer, "before"), opened(answer, "after")
    has(before, data__block_size=256)
    has(after, data__block_size=256)
    for key in sorted({*before.settings, *after.settings}):
        if key.startswith("model.config.") and before.settings.get(key) != after.settings.get(key):
            raise Wrong(f"the networks differ in {key}: make it no smaller")
    levers = answer.get("levers")
    if not isinstance(levers, list) or len(levers) != 3 or not all(levers):
        raise Wrong("levers: name three, as a list")
    saved = 1 - peak_gib(after) / peak_gib(before)
    if saved < 0.15:
        raise Wrong(f"the run takes {saved:.0%} less memory: pull harder (at least 15%)")
    speeds = [float(sorted(run.series["speed/tokens_per_second"].values)[-1]) for run in (before, after)]
    told, true = number("speed_lost", answer.get("speed_lost")), 1 - speeds[1] / speeds[0]
    if abs(told - true) > 0.1:
        raise Wrong(f"speed_lost: {told:.2f} does not fit the runs' speed/tokens_per_second")


ACCUMULATION_STUB = '''
import torch
from torch import nn
from torch.nn import functional as F


def accumulated_gradients(model, micro_batches):
    """The gradient of the mean loss over all targets of all micro-batches, one micro-batch in memory at a time.

    Args:
        model: ids (B, T) -> logits (B, T, V).
        micro_batches: list of (ids (B, T), targets (B, T)); a target of -100 does not count.

    Returns:
        one gradient for each of model.parameters(), in their order.
    """
    raise NotImplementedError


if __name__ == "__main__":
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    x, y = torch.randint(7, (4, 3)), torch.randint(7, (4, 3))
    y[0, 0] = y[0, 1] = -100
    F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    given = accumulated_gradients(model, [(x[:2], y[:2]), (x[2:], y[2:])])
    print("largest difference", max(float((a - b).abs().max()) for a, b in zip(given, wanted)))
'''


def reference_gradients(model: Any, micro_batches: list) -> list:
    """Of the large batch, all at once."""
    import torch
    from torch.nn import functional as F

    ids, targets = (torch.cat([batch[part] for batch in micro_batches]) for part in (0, 1))
    loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    return list(torch.autograd.grad(loss, list(model.parameters())))


def check_accumulation(answer: Any) -> None:
    """Micro-batches of different sizes, with different numbers of targets, one without any."""
    import torch
    from torch import nn

    accumulate = function(answer, "accumulated_gradients")
    model = nn.Sequential(nn.Embedding(11, 6), nn.Tanh(), nn.Linear(6, 11))
    for rows, kept in (((2, 2), 1.0), ((1, 3, 2), 0.5), ((2, 2, 2), 0.2)):
        batches = []
        for place, count in enumerate(rows):
            ids, targets = torch.randint(11, (2, count, 8)).unbind()
            targets[torch.rand(count, 8) > kept + 0.3 * place] = -100
            batches.append((ids, targets))
        if kept < 0.3:
            batches[0][1].fill_(-100)
        for _ in range(2):  # gradients of an earlier call must not add up
            given = accumulate(model, [(ids.clone(), targets.clone()) for ids, targets in batches])
        wanted = reference_gradients(model, batches)
        if not isinstance(given, list | tuple) or len(given) != len(wanted):
            raise Wrong(f"accumulated_gradients: a list of {len(wanted)} gradients is wanted, one a parameter")
        counts = [int((targets != -100).sum()) for _, targets in batches]
        for place, (mine, right) in enumerate(zip(given, wanted)):
            same(f"gradient {place}, micro-batches of {counts} targets", mine, right, 1e-6)


TEN_MILLION = 10_000_000


def check_ten_million(answer: dict) -> str:
    """A GPTConfig of the right size."""
    from lightning_gpt.nn import GPTConfig
    from lightning_gpt.nn.flops import parameters

    try:
        config = GPTConfig.from_dict(answer)
    except (ValueError, TypeError) as error:
        raise Wrong(str(error)) from None
    if config.vocab_size != 1024 or config.block_size != 256:
        raise Wrong("keep vocab_size: 1024 and block_size: 256")
    if config.head_size != 64:
        raise Wrong(f"the size of a head is {config.head_size}, asked for is 64")
    close("parameters", parameters(config), TEN_MILLION, 0.1)
    return f"{parameters(config):,} parameters"


EXERCISES = (
    Exercise(
        1,
        "Accumulation equals the large batch",
        "run",
        "Train 100 steps with 4 micro-batches of 3 windows, and 100 with 12 windows at once, both with "
        "--trainer.precision 32-true and else alike. `lightning-gpt compare` shows both.",
        "accumulated:   # run, such as runs/ex01_1\nlarge:         # run, such as runs/ex01_1_large",
        check_pair,
        (
            "--data.batch_size 3 --trainer.accumulate_grad_batches 4 for one, --data.batch_size 12 for the other.",
            "Optimizer steps are counted, so both have the same max_steps. bf16 would hide what is alike.",
        ),
        "accumulation",
    ),
    Exercise(
        1,
        "Count GPT-2",
        "measure",
        "L = 12, C = 768, V = 50,257, T = 1,024: how many parameters, tied head counted once? How many of the blocks' "
        "and the last norm's are in no matrix?",
        "parameters:         # a whole number\nbiases_and_norms:   # a whole number",
        check_count,
        (
            "V C + T C for embeddings, 12 C^2 for the matrices of a block.",
            "Biases of a block: 3C + C in attention, 4C + C in the feed-forward; a norm has 2C, and there are 2L + 1.",
        ),
        "gpt2",
        lambda: "parameters: 124439808\nbiases_and_norms: 121344\n",
    ),
    Exercise(
        2,
        "A forecast of memory",
        "run",
        "Let `lightning-gpt plan memory` foretell the peak of a run with --data.batch_size 512, then train it for 20 "
        "steps. Within 10%.",
        "predicted_gib:   # the plan's total\nrun:             # the run",
        check_forecast,
        (
            "plan memory takes the same -c files and settings as fit.",
            "The run's own peak is the column `peak MiB` of `lightning-gpt compare RUN`; 1,024 MiB are a GiB.",
        ),
        "forecast",
    ),
    Exercise(
        2,
        "Levers of memory",
        "run",
        "Windows of 256 tokens in less memory, the network as it is: train before and after, at least 15% less. Name "
        "three levers of `plan memory`, and the share of speed that yours cost.",
        "before:       # run\nafter:        # run\nlevers:       # [one, two, three]\nspeed_lost:   # between 0 and 1",
        check_levers,
        (
            "The table of `plan memory` orders levers by what they save; the fullest moment may be a validation.",
            "Accumulation trades batch for steps; recomputing trades time for activations.",
        ),
        "levers",
    ),
    Exercise(
        3,
        "Accumulation that is exact",
        "component",
        "Micro-batches hold different numbers of targets, and the mean of their means is not the mean over all. Write "
        "accumulation that gives the large batch's gradient to 1e-6.",
        ACCUMULATION_STUB,
        check_accumulation,
        (
            "Ask cross_entropy for sums and count targets; divide once, by the number of all targets.",
            "A micro-batch without targets has the mean 0 / 0, but the sum 0.",
            "torch.autograd.grad(loss, parameters) leaves .grad alone; with backward(), start from zero gradients.",
        ),
        "accumulate",
        lambda: {"accumulated_gradients": reference_gradients},
    ),
    Exercise(
        1,
        "Ten million parameters",
        "config",
        "Fill in a network of 10 million parameters, within 10%, whose heads are 64 wide. Any field of GPTConfig may "
        "be set: `lightning-gpt fit --model.help lightning_gpt.tasks.Pretraining` explains them.",
        "vocab_size: 1024\nblock_size: 256\nn_layer: 1\nn_head: 1\nn_embd: 64",
        check_ten_million,
        (
            "n_embd is 64 n_head, unless head_dim says otherwise.",
            "About 12 L C^2 + V C: try C = 384 and solve for L.",
        ),
        "ten_million",
        lambda: "vocab_size: 1024\nblock_size: 256\nn_layer: 5\nn_head: 6\nn_embd: 384\n",
    ),
)
