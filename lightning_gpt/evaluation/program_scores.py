"""From what a model wrote to programs, and from their outcomes to pass@k."""

from __future__ import annotations

import math
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lightning_gpt.evaluation.code_execution import fence, run_program

KS = (1, 5, 10, 25, 50, 100)
"""The k of pass@k that are shown, as far as there are so many samples."""
SECONDS = 10.0
"""Between lines of progress."""


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Probability that one of k samples passes, without bias (Chen et al., 2021): 1 - C(n - c, k) / C(n, k)."""
    if samples - passed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / n for n in range(samples - passed + 1, samples + 1))


def program_of(task: str, doc: dict[str, Any], text: str, chat: bool) -> str:
    """What is executed: the model's words, completed to a program with its tests.

    Args:
        task: humaneval or mbpp.
        doc: the problem.
        text: what the model wrote; in a conversation a block of code ends at its ``` marks.
        chat: the model was asked in a conversation.
    """
    if task == "humaneval":
        text = text.partition("```")[0] if chat else text
        return f"{doc['prompt']}{text}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    if chat and (block := re.search(r"```(?:python)?\n(.*?)(?:```|$)", text, re.DOTALL)):
        text = block[1]
    return "\n".join([doc.get("test_setup_code") or "", text, *doc["test_list"], ""])


def score_programs(task: str, samples: Sequence[dict[str, Any]], chat: bool) -> tuple[list[float], dict[str, Any]]:
    """pass@1 of each problem, and what else is known of the programs.

    Args:
        task: humaneval or mbpp.
        samples: lm-eval's notes of each problem: doc and resps, a list of texts per request.
        chat: the model was asked in a conversation.

    Returns:
        Values, and outcomes by kind, how the fence keeps the network away, and pass@k for several samples.
    """
    counts: list[tuple[int, int]] = []
    outcomes: Counter[str] = Counter()
    told = time.monotonic()
    for number, sample in enumerate(samples):
        texts = [text for request in sample["resps"] for text in ([request] if isinstance(request, str) else request)]
        passed = 0
        for text in texts:
            outcome = run_program(program_of(task, sample["doc"], text, chat))
            passed += outcome.passed
            outcomes[outcome.reason.partition(":")[0]] += 1
        counts.append((len(texts), passed))
        if time.monotonic() - told > SECONDS:
            told = time.monotonic()
            print(f"{task}: executed {number + 1:,} of {len(samples):,} problems", file=sys.stderr, flush=True)
    further: dict[str, Any] = {"outcomes": dict(outcomes.most_common()), "fence": fence().name}
    fewest = min(n for n, _ in counts)
    for k in KS[1:]:
        if k <= fewest:
            further[f"pass@{k}"] = sum(pass_at_k(n, c, k) for n, c in counts) / len(counts)
    return [pass_at_k(n, c, 1) for n, c in counts], further
