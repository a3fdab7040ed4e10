"""Whether two servers with OpenAI's API give the same answers: ours and vLLM, one machine and a cluster, two releases.

python deploy/parity.py http://127.0.0.1:8000 http://127.0.0.1:8001 --output parity.json

Both are asked the same prompts, greedily, and answer with the tokens, their log-probabilities and the nearest others.
Up to the first difference the log-probabilities are compared. Where the tokens part, the question is whether they may:
if each server holds its own token and the other's for equally likely within twice the tolerance, it is a tie, which
rounding decides (bfloat16 and another order of sums are enough); else one of them is wrong.

Exit status: 0 the same within the tolerance, 1 a difference, 2 a server that cannot be asked.
"""

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a",
    "def fibonacci(n):\n",
    "ROMEO:\nBut soft, what light through",
    "1, 2, 3, 4, 5, 6,",
    "Water boils at",
    "Ein Satz auf Deutsch: Das Wetter ist heute",
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over",
]
"""Asked where no file is given: prose, code, verse, numbers, another language, a repetition."""
NEAREST = 5
"""Likeliest tokens that are asked for at each place."""


@dataclass
class Answer:
    """What a server said to one prompt."""

    text: str
    tokens: list[str]
    logprobs: list[float]
    nearest: list[dict[str, float]]
    """Token -> log-probability of the likeliest ones, at each place."""
    finish: str
    prompt_tokens: int


@dataclass
class Comparison:
    """Of two answers to one prompt."""

    prompt: str
    equal: int
    """Tokens before the first difference."""
    tokens: int
    """Of the longer answer."""
    worst: float
    """Largest difference of log-probabilities of the equal tokens."""
    verdict: str
    """same, tie, tokens, logprobs, or prompt (the prompts were cut into different numbers of tokens)."""
    detail: str = ""


def ask(url: str, body: dict[str, Any], key: str | None, timeout_s: float) -> dict[str, Any]:
    """POST /v1/completions, or GET /v1/models for an empty body.

    Raises:
        SystemExit: 2, with a line that says why.
    """
    path = "/v1/completions" if body else "/v1/models"
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url.rstrip("/") + path, json.dumps(body).encode() if body else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        reason = f"status {error.code}: {error.read(500).decode(errors='replace').strip()}"
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
    print(f"{url}{path} cannot be asked: {reason}", file=sys.stderr)
    raise SystemExit(2)


def answer(url: str, model: str, prompt: str, options: argparse.Namespace) -> Answer:
    """One greedy answer with its log-probabilities."""
    body = {"model": model, "prompt": prompt, "max_tokens": options.max_tokens, "temperature": 0, "logprobs": NEAREST}
    said = ask(url, body, options.key, options.timeout)
    choice = said["choices"][0]
    chances = choice.get("logprobs")
    if not chances:
        print(f"{url} gives no logprobs: nothing can be compared", file=sys.stderr)
        raise SystemExit(2)
    values = [-1e9 if one is None else one for one in chances["token_logprobs"]]
    finish, used = choice["finish_reason"], said.get("usage") or {}
    nearest = [one or {} for one in chances.get("top_logprobs") or [{}] * len(values)]
    return Answer(choice["text"], chances["tokens"], values, nearest, finish, used.get("prompt_tokens", 0))


def compare(prompt: str, a: Answer, b: Answer, tolerance: float) -> Comparison:
    """Where two answers part, and whether they may."""
    length = max(len(a.tokens), len(b.tokens))
    pairs = list(zip(a.tokens, b.tokens, strict=False))
    equal = next((place for place, (one, other) in enumerate(pairs) if one != other), len(pairs))
    gaps = [abs(one - other) for one, other in zip(a.logprobs[:equal], b.logprobs[:equal], strict=True)]
    worst = max(gaps, default=0.0)

    def found(verdict: str, detail: str) -> Comparison:
        return Comparison(prompt, equal, length, worst, verdict, detail)

    if a.prompt_tokens != b.prompt_tokens:
        return found(
            "prompt", f"{a.prompt_tokens} prompt tokens against {b.prompt_tokens}: another tokenizer or template"
        )
    if worst > tolerance:
        place = gaps.index(worst)
        detail = f"token {place} {a.tokens[place]!r}: {a.logprobs[place]:.4f} against {b.logprobs[place]:.4f}"
        return found("logprobs", detail)
    if equal == length:
        if a.finish != b.finish or a.text != b.text:
            return found("tokens", f"the same tokens, but {a.finish}, {a.text!r} against {b.finish}, {b.text!r}")
        return found("same", "")
    if equal == len(pairs):  # one goes on where the other has ended, by a token that it does not show
        shorter, longer = (a, b) if len(a.tokens) < len(b.tokens) else (b, a)
        ended = f"{shorter.finish} after {equal} tokens against {longer.finish} after {length}"
        return found("tokens", ended)
    one, other = pairs[equal]
    detail = f"token {equal}: {one!r} ({a.logprobs[equal]:.4f}) against {other!r} ({b.logprobs[equal]:.4f})"
    margins = [
        own.logprobs[equal] - own.nearest[equal].get(their, -1e9) if equal < len(own.nearest) else 1e9
        for own, their in ((a, other), (b, one))
    ]
    if max(margins) <= 2 * tolerance:
        return found("tie", f"{detail}, {max(margins):.4f} apart")
    return found("tokens", detail)


def report(found: list[Comparison], tolerance: float) -> dict[str, Any]:
    """Figures of all prompts together."""
    equal, tokens = sum(one.equal for one in found), sum(one.tokens for one in found)
    verdicts = {
        word: sum(one.verdict == word for one in found) for word in ("same", "tie", "tokens", "logprobs", "prompt")
    }
    return {
        "prompts": len(found),
        "verdicts": verdicts,
        "equal_tokens": equal,
        "tokens": tokens,
        "share_equal": equal / tokens if tokens else 1.0,
        "worst_logprob_difference": max(one.worst for one in found),
        "tolerance": tolerance,
        "passed": verdicts["same"] + verdicts["tie"] == len(found),
        "comparisons": [asdict(one) for one in found],
    }


def read_prompts(path: Path | None) -> list[str]:
    """One a line, or a JSON list of strings.

    Raises:
        ValueError: there are none.
    """
    if path is None:
        return PROMPTS
    text = path.read_text(encoding="utf-8")
    prompts = (
        json.loads(text) if text.lstrip().startswith("[") else [line for line in text.splitlines() if line.strip()]
    )
    if not prompts or not all(isinstance(one, str) and one for one in prompts):
        raise ValueError(f"{path} must hold a prompt a line, or a JSON list of strings")
    return prompts


def main(words: list[str]) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", help="address of a server, such as http://127.0.0.1:8000")
    parser.add_argument("b", help="of the one that it is compared with")
    parser.add_argument("--model-a", help="a name of /v1/models; its first unless given")
    parser.add_argument("--model-b")
    parser.add_argument("--prompts", type=Path, help="one a line, or a JSON list")
    parser.add_argument("--max-tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--tolerance", type=float, default=0.05, help="of log-probabilities; 0.3 for bfloat16")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one answer")
    parser.add_argument("--key", default=os.environ.get("OPENAI_API_KEY"), help="API key of both")
    parser.add_argument("--output", type=Path, help="JSON with every comparison")
    options = parser.parse_args(words)
    if options.max_tokens < 1 or options.tolerance < 0:
        parser.error("--max-tokens must be at least 1 and --tolerance at least 0")
    try:
        prompts = read_prompts(options.prompts)
    except (OSError, ValueError) as error:
        parser.error(f"--prompts: {error}")
    models = []
    for url, name in ((options.a, options.model_a), (options.b, options.model_b)):
        models.append(name or ask(url, {}, options.key, options.timeout)["data"][0]["id"])
    found = []
    for prompt in prompts:
        a, b = (answer(url, model, prompt, options) for url, model in zip((options.a, options.b), models, strict=True))
        found.append(compare(prompt, a, b, options.tolerance))
        one = found[-1]
        figures = f"{one.equal:>4} of {one.tokens:<4} tokens equal, logprobs within {one.worst:.4f}"
        print(f"{one.verdict:<8} {figures}  {prompt[:40]!r}{'  ' + one.detail if one.detail else ''}")
    told = report(found, options.tolerance)
    if options.output:
        options.output.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = ", ".join(f"{count} {word}" for word, count in told["verdicts"].items() if count)
    print(f"{counts}; {told['share_equal']:.1%} of {told['tokens']} tokens equal before the first difference, ", end="")
    print(f"logprobs within {told['worst_logprob_difference']:.4f} (tolerance {options.tolerance:g})")
    return 0 if told["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
