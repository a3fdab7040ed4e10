"""A tiny language model with an end-of-text token, as a directory, and rows to fine-tune it on."""

import json
import random
from pathlib import Path

import pytest
import torch

from lightning_gpt.hub import save_model
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.text.byte import byte_tokenizer

WORDS = ["red", "green", "blue", "seven", "nine", "tree", "river", "stone", "quiet", "loud", "first", "last"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Random weights of a LLaMA; byte tokens, <|endoftext|>; a context of 64."""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=257,
        block_size=64,
        n_layer=2,
        n_head=2,
        n_embd=32,
        position="rotary",
        norm="rmsnorm",
        feed_forward="swiglu",
        bias=False,
        tie_embeddings=False,
        init_std=0.2,
    )
    directory = tmp_path_factory.mktemp("tiny") / "model"
    save_model(directory, GPT(config), byte_tokenizer(end_of_text=True))
    return directory


def write(path: Path, rows: list[dict]) -> Path:
    """Rows as a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """40 pairs of answers, the better one longer or shorter by chance."""
    draw = random.Random(1)
    rows = []
    for number in range(40):
        chosen, rejected = (" " + " ".join(draw.choices(WORDS, k=draw.randint(1, 5))) for _ in range(2))
        rows.append({"prompt": f"{number} {draw.choice(WORDS)}", "chosen": chosen, "rejected": rejected + "!"})
    return write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture(scope="session")
def answers(tmp_path_factory) -> Path:
    """40 prompts with an answer."""
    draw = random.Random(2)
    rows = [
        {"prompt": f"{number} {draw.choice(WORDS)}:", "completion": " " + " ".join(draw.choices(WORDS, k=3))}
        for number in range(40)
    ]
    return write(tmp_path_factory.mktemp("answers") / "answers.jsonl", rows)
