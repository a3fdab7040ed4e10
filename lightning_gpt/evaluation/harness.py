"""Runs evaluations of one model and gathers what they say, standard errors included."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import os
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_gpt.evaluation.code_execution import network_cut, pass_at_k, run_program
from lightning_gpt.evaluation.language_model import Scorer, bits_per_byte, language_model
from lightning_gpt.evaluation.tasks import Evaluation
from lightning_gpt.nn import GPT
from lightning_gpt.text.tokenizer import Tokenizer

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def run_evaluations(
    net: GPT,
    tokenizer: Tokenizer,
    evaluations: Sequence[Evaluation],
    data: Path,
    scorer: Scorer,
    limit: int | None = None,
    batch_size: int = 16,
    chat: bool = False,
    allow_code: bool = False,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Name -> value, stderr, n, of (examples in the set), metric, chance, and what a set says beyond that.

    Args:
        net: in evaluation mode.
        tokenizer: its tokenizer.
        evaluations: which.
        data: directory of their files.
        scorer: around the network.
        limit: of each set only so many examples, drawn by the seed.
        batch_size: prompts side by side where text is generated.
        chat: ask in the model's chat template.
        allow_code: execute programs that the model writes.
        seed: of the choice of examples.

    Raises:
        ValueError: a set of programs without allow_code.
    """
    check_code(evaluations, allow_code)
    results = {}
    for one in evaluations:
        size = (data / f"{one.name}.jsonl").read_bytes().count(b"\n")
        print(f"{one.name}: {min(limit or size, size):,} of {size:,} examples", file=sys.stderr, flush=True)
        samples = _samples(one, data, language_model(net, tokenizer, scorer, batch_size), limit, size, chat, seed)
        values, further = SCORES[one.kind](one, samples)
        n = len(values)
        mean = sum(values) / n
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(n - 1, 1) / n)
        results[one.name] = {
            "value": mean,
            "stderr": spread,
            "n": n,
            "of": size,
            "metric": one.metric,
            "chance": one.chance,
            "about": one.about,
            "data_sha256": hashlib.sha256((data / f"{one.name}.jsonl").read_bytes()).hexdigest()[:16],
            **further,
        }
        print(f"{one.name}: {one.metric} {mean:.4f} ± {spread:.4f} (n={n:,})", file=sys.stderr, flush=True)
    return results


def check_code(evaluations: Sequence[Evaluation], allow_code: bool) -> None:
    """Refuses sets of programs unless executing them is allowed, before anything is run."""
    code = [one.name for one in evaluations if one.kind == "code"]
    if code and not allow_code:
        raise ValueError(
            f"tasks={','.join(code)} execute programs that the model writes: add --allow_code true on a machine that "
            "nothing depends on"
        )


def _samples(
    one: Evaluation, data: Path, model: Any, limit: int | None, size: int, chat: bool, seed: int
) -> list[dict[str, Any]]:
    """lm-eval's samples of one task: documents, what was said, metrics."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    chosen = None
    if limit is not None and limit < size:
        chosen = {one.name: sorted(random.Random(seed).sample(range(size), limit))}
    noise = logging.getLogger("lm_eval")
    level = noise.level
    noise.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(_Quiet(sys.stderr)), contextlib.redirect_stdout(io.StringIO()):
            found = simple_evaluate(
                model,
                tasks=[one.config(data)],
                task_manager=TaskManager(include_defaults=False),
                samples=chosen,
                bootstrap_iters=0,
                apply_chat_template=chat,
                log_samples=True,
                verbosity=None,
            )
    finally:
        noise.setLevel(level)
    return found["samples"][one.name]


class _Quiet(io.TextIOBase):
    """Lets lines of ours through and keeps progress bars of libraries out."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.ours = stream, False

    def write(self, text: str) -> int:
        """Bars redraw their line with a carriage return."""
        if text.strip():
            self.ours = "\r" not in text and "it/s" not in text
        if self.ours:
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As the stream."""
        self.stream.flush()


def _choice(one: Evaluation, samples: list[dict[str, Any]]) -> tuple[list[float], dict[str, Any]]:
    values = [float(sample[one.metric]) for sample in samples]
    further: dict[str, Any] = {}
    if one.metric == "acc_norm":
        further["acc"] = sum(float(sample["acc"]) for sample in samples) / len(samples)
    subjects: dict[str, list[float]] = {}
    for sample, value in zip(samples, values):
        if "subject" in sample["doc"]:
            subjects.setdefault(sample["doc"]["subject"], []).append(value)
    if subjects:
        further["subjects"] = {name: sum(of) / len(of) for name, of in sorted(subjects.items())}
        further["subject_mean"] = sum(further["subjects"].values()) / len(subjects)
    if one.name == "bbq":
        wrong = [sample for sample, value in zip(samples, values) if not value]
        said = [max(range(3), key=lambda k, s=sample: float(s["filtered_resps"][k][0])) for sample in wrong]
        biased = [choice == sample["doc"]["biased"] for choice, sample in zip(said, wrong)]
        further["biased_when_wrong"] = sum(biased) / len(biased) if biased else 0.0
    return values, further


def _number(one: Evaluation, samples: list[dict[str, Any]]) -> tuple[list[float], dict[str, Any]]:
    """Right when the number behind #### is, or without one the last number."""
    values, formed = [], 0
    for sample in samples:
        text = sample["resps"][0][0]
        marked = re.search(r"####\s*(" + NUMBER.pattern + ")", text)
        formed += marked is not None
        numbers = NUMBER.findall(text)
        said = marked[1] if marked else (numbers[-1] if numbers else "")
        values.append(float(said.replace(",", "") == str(sample["doc"]["answer"]).replace(",", "")))
    return values, {"in_form": formed / len(samples)}


def _code(one: Evaluation, samples: list[dict[str, Any]]) -> tuple[list[float], dict[str, Any]]:
    values, reasons = [], {}
    for sample in samples:
        doc, text = sample["doc"], sample["resps"][0][0]
        if one.name == "humaneval":
            program = f"{doc['prompt']}{text}\n\n{doc['test']}\n\ncheck({doc['entry_point']})\n"
        else:
            program = "\n".join([doc["test_setup_code"] or "", text, *doc["test_list"]])
        outcome = run_program(program)
        values.append(pass_at_k(1, int(outcome.passed), 1))
        kind = outcome.reason.partition(":")[0]
        reasons[kind] = reasons.get(kind, 0) + 1
    fence = "network namespace" if network_cut() else "audit hook alone"
    return values, {"outcomes": dict(sorted(reasons.items(), key=lambda kv: -kv[1])), "network_cut_by": fence}


SCORES = {"choice": _choice, "gap": _choice, "continuation": _choice, "number": _number, "code": _code}


def perplexity_of(path: Path, net: GPT, tokenizer: Tokenizer, scorer: Scorer) -> dict[str, Any]:
    """Bits per byte of a text file."""
    text = path.read_text(encoding="utf-8")
    if not text:
        raise ValueError(f"text={path} is empty")
    value, size = bits_per_byte(scorer, tokenizer, text)
    return {
        "value": value,
        "stderr": None,
        "n": size,
        "of": size,
        "metric": "bits per byte",
        "chance": None,
        "about": str(path.name),
    }
