"""Runs evaluations of one model through lm-eval and gathers what they say, standard errors included."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gpt.evaluation.lm_eval_model import bits_per_byte, language_model
from lightning_gpt.evaluation.program_scores import score_programs
from lightning_gpt.evaluation.scoring import Scorer
from lightning_gpt.evaluation.tasks import Evaluation, Questions
from lightning_gpt.nn import GPT
from lightning_gpt.text.tokenizer import Tokenizer

Sample = dict[str, Any]
"""What lm-eval notes of one question: doc, arguments, resps, filter, and the metrics by name."""
Result = dict[str, Any]


def run_evaluations(
    net: GPT,
    tokenizer: Tokenizer,
    evaluations: Sequence[Questions],
    data: Path,
    scorer: Scorer,
    limit: int | None = None,
    batch_size: int = 16,
    chat: bool = False,
    allow_code: bool = False,
    code_samples: int = 1,
    seed: int = 0,
    before: Mapping[str, Result] | None = None,
    after: Callable[[dict[str, Result]], None] | None = None,
) -> dict[str, Result]:
    """Name -> value, stderr, n, of (questions in the set), metric, chance, shots, and what a set says beyond that.

    The standard error is that of a mean, lm-eval's: the sample's deviation over the square root of n; for parts of a
    set it does not count that a finite set was drawn from.

    Args:
        net: in evaluation mode.
        tokenizer: its tokenizer.
        evaluations: which.
        data: directory of their files.
        scorer: around the network.
        limit: of each set only so many questions, drawn by the seed; a set's own limit comes before it.
        batch_size: prompts side by side where text is generated.
        chat: ask in the model's chat template.
        allow_code: execute programs that the model writes.
        code_samples: programs drawn for each problem, for pass@k; 1 = the likeliest.
        seed: of the choice of questions and of drawn answers.
        before: results of an earlier run with the same model and settings; what is there is not measured again.
        after: called with all results so far when an evaluation is done.

    Raises:
        ValueError: a set of programs without allow_code.
    """
    code = [questions.evaluation.name for questions in evaluations if questions.evaluation.code]
    if code and not allow_code:
        raise ValueError(
            f"tasks={','.join(code)} execute programs that the model writes: add --allow_code on a machine that "
            "nothing depends on"
        )
    model = language_model(net, tokenizer, scorer, batch_size, seed)
    results: dict[str, Result] = {}
    for questions in evaluations:
        one, size = questions.evaluation, len(questions.rows)
        n = min(questions.limit or limit or size, size)
        known = (before or {}).get(one.name)
        asked_now = (n, size, questions.shots, fingerprint(data, one.name))
        if known is not None and tuple(known.get(k) for k in ("n", "of", "shots", "data_sha256")) == asked_now:
            print(f"{one.name}: measured before", file=sys.stderr, flush=True)
            results[one.name] = known
            continue
        print(f"{one.name}: {n:,} of {size:,} questions, {questions.shots} examples", file=sys.stderr, flush=True)
        chosen = sorted(random.Random(seed).sample(range(size), n))
        configs, asked = questions.configs(chosen, chat, code_samples)
        found = ask(model, configs, asked, chat)
        samples = {name: one_filter(of, one.filter) for name, of in found["samples"].items()}
        everything = [sample for of in samples.values() for sample in of]
        if one.code:
            values, further = score_programs(one.name, everything, chat)
        else:
            values = [float(sample[one.metric]) for sample in everything]
            further = _further(one, samples, found)
        mean, spread = mean_and_error(values)
        results[one.name] = {
            "value": mean,
            "stderr": spread,
            "n": n,
            "of": size,
            "metric": one.metric,
            "chance": one.chance if one.name != "bbq" else guessing(everything),
            "shots": questions.shots,
            "about": one.about,
            "data_sha256": fingerprint(data, one.name),
            **further,
        }
        print(f"{one.name}: {one.metric} {mean:.4f} ± {spread:.4f} (n={n:,})", file=sys.stderr, flush=True)
        if after is not None:
            after(results)
    return results


def ask(model: Any, configs: list[dict], asked: dict[str, list[int]], chat: bool) -> dict[str, Any]:
    """lm-eval's simple_evaluate of these tasks, offline and without its progress bars.

    Args:
        model: any lm_eval.api.model.LM.
        configs: task configurations with their data.
        asked: task -> indices of rows.
        chat: in the model's chat template.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with _quiet():
        return simple_evaluate(
            model,
            tasks=configs,
            task_manager=TaskManager(include_defaults=False),
            samples=asked,
            bootstrap_iters=0,
            apply_chat_template=chat,
            log_samples=True,
            verbosity=None,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps bars, warnings and logs of libraries out; lines of ours come through."""
    noise = logging.getLogger("lm_eval")
    level = noise.level
    noise.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(_OurLines(sys.stderr)), contextlib.redirect_stdout(io.StringIO()):
                yield
    finally:
        noise.setLevel(level)


class _OurLines(io.TextIOBase):
    """Bars redraw their line with a carriage return; what does not is let through."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.ours = stream, False

    def write(self, text: str) -> int:
        """As the stream's."""
        if text.strip():
            self.ours = "\r" not in text and "it/s" not in text
        if self.ours:
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As the stream's."""
        self.stream.flush()


def one_filter(samples: list[Sample], name: str) -> list[Sample]:
    """lm-eval notes a question once for every way of reading its answer; these are those of one."""
    return [sample for sample in samples if sample["filter"] == name]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; one value has none, 0 is given."""
    n, mean = len(values), sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / max(n - 1, 1) / n)


def guessing(samples: list[Sample]) -> float:
    """What a choice by chance reaches: BBQ offers ten ways of saying that the text does not tell beside two people, and
    one choice is right."""
    return sum(1 / len(sample["arguments"]) for sample in samples) / len(samples)


def fingerprint(data: Path, name: str) -> str:
    """The first 16 digits of SHA-256 over a set's files."""
    digest = hashlib.sha256()
    for path in (data / f"{name}.jsonl", data / f"{name}.examples.jsonl"):
        if path.exists():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _further(one: Evaluation, samples: dict[str, list[Sample]], found: dict[str, Any]) -> dict[str, Any]:
    """What a set says beside its main number."""
    everything = [sample for of in samples.values() for sample in of]
    further: dict[str, Any] = {}
    if one.metric == "acc_norm":
        further["acc"] = mean_and_error([float(sample["acc"]) for sample in everything])[0]
    if one.name == "mmlu":
        further["subjects"] = {
            of[0]["doc"]["subject"]: mean_and_error([sample["acc"] for sample in of])[0] for of in samples.values()
        }
        further["subject_mean"] = sum(further["subjects"].values()) / len(samples)
    if one.name == "gsm8k":
        strict = one_filter(found["samples"][one.name], "strict-match")
        further["strict_match"] = mean_and_error([sample[one.metric] for sample in strict])[0]
    if one.name == "bbq":
        # 1: every wrong answer is the stereotype's; -1: its opposite; 0: no lean (Parrish et al., 2022, sec. 5)
        further["bias_score"] = float(found["results"][one.name]["disamb_bias_score,none"])
    if one.name == "lambada":
        further["perplexity"] = float(found["results"][one.name]["perplexity,none"])
    return further


def perplexity_of(path: Path, tokenizer: Tokenizer, scorer: Scorer) -> Result:
    """Bits per byte of a text file.

    Raises:
        ValueError: it is missing, no UTF-8 or empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"text={path} cannot be read: {error}") from None
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
        "shots": 0,
        "about": path.name,
        "data_sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
    }
