"""Planted mistakes in exercises of 01 to 04: each gets its message."""

import math

import pytest
import torch
from judged import judged, mistake, named
from torch.nn import functional as F

from lightning_gpt.learning import chapter_02 as two
from lightning_gpt.learning import chapter_04 as four
from lightning_gpt.learning.chapter_01 import reference_gradients
from lightning_gpt.learning.chapter_03 import reference_adamw, reference_clip, reference_factor

pytestmark = pytest.mark.slow


def gradients(model, loss):
    return list(torch.autograd.grad(loss, list(model.parameters())))


def mean_of_means(model, batches):
    losses = [F.cross_entropy(model(x).flatten(0, 1), y.flatten()) for x, y in batches]
    return gradients(model, torch.stack(losses).nanmean())


def adds_up(model, batches):
    total = sum(int((y != -100).sum()) for _, y in batches)
    for x, y in batches:
        (F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / total).backward()
    return [parameter.grad for parameter in model.parameters()]


def counts_all(model, batches):
    count = sum(y.numel() for _, y in batches)
    losses = [F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") for x, y in batches]
    return gradients(model, torch.stack(losses).sum() / count)


def largest_pair(text, merges):
    ids, pairs = list(text.encode()), []
    while len(pairs) < merges:
        counts = two.Counter(two.itertools.pairwise(ids))
        if not counts or max(counts.values()) < 2:
            break
        pairs.append(max(counts, key=lambda pair: (counts[pair], pair)))
        ids = two._joined(ids, pairs[-1], 255 + len(pairs))
    return pairs


def decodes_bytes_alone(ids, pairs):
    return "".join(two.decode([one], pairs) for one in ids)


class Silent:
    def __init__(self, text):
        self.characters = sorted(set(text))

    def encode(self, text):
        return [self.characters.index(one) for one in text if one in self.characters]

    def decode(self, ids):
        return "".join(self.characters[one] for one in ids)


class Unsorted(Silent):
    def __init__(self, text):
        self.characters = list(dict.fromkeys(text))


def decays_all(parameters, gradients, states, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    new, after = reference_adamw(parameters, gradients, states, step, lr, betas, eps, weight_decay)
    return [one - (lr * weight_decay * old if old.ndim < 2 else 0) for one, old in zip(new, parameters)], after


def uncorrected(parameters, gradients, states, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    new, after = [], []
    for w, g, (m, v) in zip(parameters, gradients, states):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        new.append(w * (1 - lr * weight_decay * (w.ndim > 1)) - lr * m / (v.sqrt() + eps))
        after.append((m, v))
    return new, after


def adam_with_l2(parameters, gradients, states, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    spoilt = [g + weight_decay * w * (w.ndim > 1) for g, w in zip(gradients, parameters)]
    return reference_adamw(parameters, spoilt, states, step, lr, betas, eps, 0.0)


def in_place(parameters, gradients, states, step, lr, **settings):
    new, after = reference_adamw(parameters, gradients, states, step, lr, **settings)
    for old, one in zip(parameters, new):
        old.copy_(one)
    return parameters, after


def starts_at_zero(step, warmup, total, ratio):
    return step / (warmup + 1) if step < warmup else reference_factor(step, warmup, total, ratio)


def goes_up_again(step, warmup, total, ratio):
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return ratio + (1 - ratio) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def each_alone(gradients, limit):
    return [one * min(1.0, limit / max(float(one.norm()), 1e-9)) for one in gradients], reference_clip(gradients, 1)[1]


def always_scaled(gradients, limit):
    norm = reference_clip(gradients, limit)[1]
    return [one * limit / max(norm, 1e-6) for one in gradients], norm


def unpaired(reference, variants):
    from scipy import stats

    right = four.solve_paired(reference, variants)
    return {
        name: (*right[name][:3], float(stats.ttest_ind(losses, reference).pvalue), right[name][4])
        for name, losses in variants.items()
    }


def uncorrected_p(reference, variants):
    return {name: (*one[:4], one[3]) for name, one in four.solve_paired(reference, variants).items()}


def normal_interval(reference, variants):
    found = {}
    for name, (mean, low, high, *rest) in four.solve_paired(reference, variants).items():
        reach = (high - low) / 2 * 0.8
        found[name] = (mean, mean - reach, mean + reach, *rest)
    return found


def drops_last(tokens, starts, block):
    x, y = two.reference_batch(tokens, starts, block)
    return x[:, :-1], y[:, :-1]


MISTAKES = [
    ("01", "gpt2", {"parameters": 124_318_464}, "parameters: 1.24318e+08 is too small, by 0.1%"),
    ("01", "ten_million", {"n_head": 8}, "the size of a head is 48"),
    ("01", "ten_million", {"n_layer": 12}, "parameters: "),
    ("01", "ten_million", {"n_embed": 384}, "n_embed"),
    ("01", "ten_million", {"block_size": 128}, "keep vocab_size"),
    ("01", "accumulate", {"accumulated_gradients": mean_of_means}, "differs from the reference"),
    ("01", "accumulate", {"accumulated_gradients": counts_all}, "differs from the reference"),
    ("01", "accumulate", {"accumulated_gradients": adds_up}, "differs from the reference"),
    (
        "01",
        "accumulate",
        {"accumulated_gradients": lambda m, b: reference_gradients(m, b)[:1]},
        "a list of 3 gr",
    ),
    ("02", "unseen", {"random": 0.5}, "random: 0.5 is too large"),
    ("02", "bpe", {"learn": largest_pair}, "learn("),
    ("02", "bpe", {"decode": decodes_bytes_alone}, "UnicodeDecodeError"),
    ("02", "bpe", {"encode": lambda text, pairs: list(text.encode())}, "encode("),
    ("02", "char", {"CharTokenizer": Silent}, "that the vocabulary lacks gives [0, 1]"),
    ("02", "char", {"CharTokenizer": Unsorted}, "encode('hello')"),
    ("02", "batch", {"batch": lambda t, s, b: (two.reference_batch(t, s, b)[0],) * 2}, "y of starts"),
    ("02", "batch", {"batch": drops_last}, "the shape is"),
    ("02", "batch", {"batch": lambda t, s, b: two.reference_batch(t, s, b)[0]}, "two tensors are wanted"),
    ("03", "adamw", {"adamw_step": decays_all}, "parameter 1 (a vector) after step 1"),
    ("03", "adamw", {"adamw_step": uncorrected}, "after step 1"),
    ("03", "adamw", {"adamw_step": adam_with_l2}, "(a matrix)"),
    ("03", "adamw", {"adamw_step": in_place}, "was changed in place"),
    ("03", "cosine", {"factor": starts_at_zero}, "factor(0, 4, 20, 0.1): 0 is wrong"),
    ("03", "cosine", {"factor": goes_up_again}, "factor(27, 4, 20, 0.1)"),
    ("03", "clip", {"clip": each_alone}, "clipped gradients of norm"),
    ("03", "clip", {"clip": always_scaled}, "limit 1: differs"),
    ("04", "paired", {"compare": unpaired}, "p of v0"),
    ("04", "paired", {"compare": uncorrected_p}, "corrected p of"),
    ("04", "paired", {"compare": normal_interval}, "low of v0"),
    ("04", "curves", {"c": "rate_too_low"}, "c: 'rate_too_low' is wrong"),
    ("04", "curves", {"e": None}, "e: not filled in yet"),
    ("04", "power", {"pairs": 10}, "pairs: 10 is too small"),
]


@pytest.mark.parametrize("number, name, parts, message", MISTAKES, ids=lambda one: one if isinstance(one, str) else "")
def test_a_mistake_is_named(number, name, parts, message):
    try:
        said = mistake(number, name, parts)
    except UnicodeDecodeError as error:  # examine.judge makes a message of it
        said = type(error).__name__
    assert message in said


def test_accumulation_as_one_writes_it():
    def accumulate(model, batches):
        total = sum(int((y != -100).sum()) for _, y in batches)
        for parameter in model.parameters():
            parameter.grad = None
        for x, y in batches:
            (F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / total).backward()
        return [parameter.grad for parameter in model.parameters()]

    assert judged(named("01", "accumulate"), {"accumulated_gradients": accumulate}) is None


def test_planted_curves_are_what_diagnose_says():
    import json

    from lightning_gpt.callbacks.diagnosis_rules import diagnose
    from lightning_gpt.callbacks.diagnosis_signals import Facts, Signals
    from lightning_gpt.learning.curves import SICKNESSES, curve_files

    for (name, kind), text in zip(SICKNESSES.items(), curve_files().values()):
        rows = [json.loads(line) for line in text.splitlines()]
        found = [one.rule for one in diagnose(Signals.of_rows(rows, Facts(max_steps=600, vocab_size=65))).findings]
        assert kind in found if kind != "healthy" else not found, (name, kind, found)
