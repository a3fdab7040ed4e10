"""How well a model answers questions about the documentation: greedy answers beside the right ones.

    python experiments/capstone/answers.py models/capstone_dpo --out runs/capstone/dpo.json
    python experiments/capstone/answers.py models/capstone_int8 --retrieved --out runs/capstone/int8_retrieved.json
    python experiments/capstone/answers.py rule --out runs/capstone/rule.json

Questions are those of data/documentation/test.jsonl, whose modules no training question was about. The quality of an
answer is the F1 of its words (SQuAD, Rajpurkar et al., 2016, arXiv:1606.05250: lower case, without punctuation and
articles); of a question that the passages do not answer it is 1 for saying so and 0 for anything else. `--retrieved`
gives the model the three passages that retrieval.py finds among all, in place of those that stand in the file. `rule`
is no model: the first sentence of the passage that shares most words with the question.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2] / "data"))

from documentation_questions import ABSENT, conversation
from retrieval import Retrieval, terms

QUESTIONS = Path("data/documentation/test.jsonl")
MAX_NEW_TOKENS = 64


def words(text: str) -> list[str]:
    """As SQuAD's evaluation reads them, with names kept apart at their dots."""
    return re.sub(r"\b(a|an|the)\b", " ", re.sub(r"[^\w]+", " ", text.lower())).split()


def f1(answer: str, right: str) -> float:
    """Of the words that both have."""
    said, wanted = words(answer), words(right)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted)) if common else float(said == wanted)


def quality(answer: str, row: dict[str, Any]) -> float:
    """Of one answer, 0 to 1."""
    right = row["messages"][-1]["content"]
    absent = words(answer) == words(ABSENT)
    return float(absent) if row["kind"] == "absent" else 0.0 if absent else f1(answer, right)


def with_retrieval(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], float]:
    """The rows with passages found by the question, and the share of them whose own passage was found.

    A question that was made without its passage is left out: among all passages there it is.
    """
    retrieval, made, found = Retrieval(), [], 0
    for row in (row for row in rows if row["kind"] != "absent"):
        question = row["messages"][1]["content"].rpartition("Question: ")[2]
        nearest = retrieval.find(question)
        found += any(one["name"] == row["name"] for one in nearest)
        answer = row["messages"][-1]["content"]
        made.append(row | {"messages": conversation([one["passage"] for one in nearest], question, answer)})
    return made, found / max(len(made), 1)


def by_rule(row: dict[str, Any]) -> str:
    """The first sentence of the passage that shares most terms with the question."""
    listed, _, question = row["messages"][1]["content"].rpartition("\n\nQuestion: ")
    passages = re.findall(r"^\d\. (.*)$", listed, re.MULTILINE)
    asked = Counter(terms(question))
    best = max(passages, key=lambda passage: sum((Counter(terms(passage)) & asked).values()))
    return re.split(r"(?<=\.)\s", best.partition("`: ")[2])[0]


def by_model(model: str, rows: list[dict[str, Any]]) -> list[str]:
    """Greedy answers in bfloat16, side by side in the engine."""
    import torch

    from lightning_gpt.hub import open_model
    from lightning_gpt.inference import SamplingConfig, generate_text
    from lightning_gpt.text.chat import ChatTemplate

    net, tokenizer = open_model(model, torch.bfloat16)
    net.eval()
    template = ChatTemplate(tokenizer)
    prompts = [template.prompt_ids(row["messages"][:-1]) for row in rows]
    texts, begun, ended = [""] * len(rows), time.monotonic(), 0
    greedy = SamplingConfig(temperature=0)
    for piece in generate_text(net, tokenizer, prompts, MAX_NEW_TOKENS, greedy, overflow="refuse"):
        texts[piece.row] += piece.text
        ended += piece.finish is not None
        if piece.finish is not None and ended % 100 == 0:
            print(f"{ended} of {len(rows)} answers, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return texts


def mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory, or rule")
    parser.add_argument("--questions", type=Path, default=QUESTIONS)
    parser.add_argument("--limit", type=int, help="only the first so many")
    parser.add_argument("--retrieved", action="store_true", help="with the passages that are found among all")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.questions.read_text(encoding="utf-8").splitlines()]
    rows, found = rows[: arguments.limit], None
    if arguments.retrieved:
        rows, found = with_retrieval(rows)
    begun = time.monotonic()
    ruled = arguments.model == "rule"
    answers = [by_rule(row) for row in rows] if ruled else by_model(arguments.model, rows)
    scores = [quality(answer, row) for answer, row in zip(answers, rows)]
    exact = [float(words(answer) == words(row["messages"][-1]["content"])) for answer, row in zip(answers, rows)]
    kinds = sorted({row["kind"] for row in rows})
    result = {
        "model": arguments.model,
        "n": len(rows),
        "quality": mean(scores),
        "exact": mean(exact),
        "by_kind": {kind: mean([s for s, row in zip(scores, rows) if row["kind"] == kind]) for kind in kinds},
        "known_wording": mean([s for s, row in zip(scores, rows) if not row["new_wording"]]),
        "new_wording": mean([s for s, row in zip(scores, rows) if row["new_wording"]]),
        "found": found,
        "seconds": round(time.monotonic() - begun, 1),
        "scores": [round(score, 4) for score in scores],
        "examples": [
            {
                "kind": row["kind"],
                "prompt": row["messages"][1]["content"],
                "right": row["messages"][-1]["content"],
                "answer": answer,
            }
            for row, answer in list(zip(rows, answers))[:8]
        ],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = arguments.out.with_name(f".{arguments.out.name}")
    temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(arguments.out)
    shown = {name: result[name] for name in ("n", "quality", "exact", "by_kind", "found", "seconds")}
    print(f"{arguments.model}: {json.dumps(shown)}")


if __name__ == "__main__":
    main()
