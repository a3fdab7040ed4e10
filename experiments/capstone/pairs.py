"""Pairs for DPO from the model's own mistakes: the right answer beside the worst of those that it draws.

    python experiments/capstone/pairs.py models/capstone_sft --out data/documentation/pairs

Draws several answers at temperature 1 to questions of data/documentation/train.jsonl. Where the worst of them is worth
less than 0.8 (answers.py's measure) it is the rejected one, and the right answer the chosen one. Writes train.jsonl and
test.jsonl (a tenth) of prompt, chosen, rejected.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from answers import MAX_NEW_TOKENS, quality

from lightning_gpt.hub import open_model
from lightning_gpt.inference import SamplingConfig, generate_text
from lightning_gpt.text.chat import ChatTemplate

GOOD = 0.8
"""An answer of this quality is not called wrong."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of the model that answers")
    parser.add_argument("--questions", type=Path, default=Path("data/documentation/train.jsonl"))
    parser.add_argument("--limit", type=int, default=600, help="questions that are asked, drawn at random")
    parser.add_argument("--samples", type=int, default=4, help="answers to each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.questions.read_text(encoding="utf-8").splitlines()]
    rows = random.Random(arguments.seed).sample(rows, min(arguments.limit, len(rows)))
    drawn = draw(arguments.model, rows, arguments.samples, arguments.seed)
    pairs = []
    for row, answers in zip(rows, drawn):
        *prompt, right = row["messages"]
        worst = min(answers, key=lambda answer: quality(answer, row))
        if worst.strip() and quality(worst, row) < GOOD:
            rejected = [{"role": "assistant", "content": worst.strip()}]
            pairs.append({"prompt": prompt, "chosen": [right], "rejected": rejected, "kind": row["kind"]})
    held_out = max(len(pairs) // 10, 1)
    for name, part in (("test", pairs[:held_out]), ("train", pairs[held_out:])):
        path = arguments.out / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        temporary.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in part), encoding="utf-8")
        temporary.replace(path)
        print(f"{path}: {len(part):,} pairs, of {len(rows):,} questions")


def draw(model: str, rows: list[dict], samples: int, seed: int) -> list[list[str]]:
    """Answers to each question, `samples` of them."""
    net, tokenizer = open_model(model, torch.bfloat16)
    net.eval()
    template = ChatTemplate(tokenizer)
    prompts = [template.prompt_ids(row["messages"][:-1]) for row in rows for _ in range(samples)]
    texts, ended, begun = [""] * len(prompts), 0, time.monotonic()
    for piece in generate_text(net, tokenizer, prompts, MAX_NEW_TOKENS, SamplingConfig(), seed=seed, overflow="refuse"):
        texts[piece.row] += piece.text
        ended += piece.finish is not None
        if piece.finish is not None and ended % 200 == 0:
            print(f"{ended} of {len(prompts)} answers, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return [texts[first : first + samples] for first in range(0, len(texts), samples)]


if __name__ == "__main__":
    main()
