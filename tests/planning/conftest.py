"""A grid of runs as an experiment's results.json has it, its losses from planted constants."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightning_gpt.nn.flops import body_parameters, parameters, training_flops_per_token
from lightning_gpt.nn.presets import PRESETS

PLANTED = {"E": 1.5, "A": 60.0, "B": 900.0, "alpha": 0.35, "beta": 0.45}
SIZES = ((2, 64), (3, 96), (4, 128), (5, 192), (6, 256), (8, 320))
TOKENS = (1_000_000, 2_000_000, 4_000_000, 8_000_000, 16_000_000)


def planted_loss(size, tokens):
    return PLANTED["E"] + PLANTED["A"] / size ** PLANTED["alpha"] + PLANTED["B"] / tokens ** PLANTED["beta"]


def grid_results(noise: float = 0.003, seeds: int = 1, sizes=SIZES, tokens=TOKENS, body: bool = True) -> dict:
    """Content of results.json for a grid of LLaMA-like networks; the law counts all parameters."""
    random = np.random.default_rng(0)
    cells = []
    for layers, width in sizes:
        config = replace(
            PRESETS["llama-125m"], n_layer=layers, n_embd=width, n_head=width // 32, vocab_size=1024, block_size=256
        )
        size, flops = parameters(config), training_flops_per_token(config, 256)
        for amount in tokens:
            for seed in range(1, seeds + 1):
                loss = planted_loss(size, amount) * np.exp(noise * random.standard_normal())
                cell = {"variant": f"d{layers}w{width}-{amount // 10**6}M", "seed": seed, "status": "done"}
                cell |= {"final": {"val/loss": loss}, "parameters": size, "tokens": amount}
                cell |= {"training_flops": flops * amount} | (
                    {"body_parameters": body_parameters(config)} if body else {}
                )
                cells.append(cell)
    corpus = {"name": "words", "scheme": "bpe", "vocab_size": 1024, "train_tokens": 20_000_000}
    return {"format": 1, "cells": cells, "corpora": {cell["variant"]: dict(corpus) for cell in cells}}


@pytest.fixture
def grid():
    """grid(noise=0.003, seeds=1, sizes=SIZES, tokens=TOKENS, body=True): content of a results.json."""
    return grid_results


@pytest.fixture
def planted():
    """The constants, and planted["loss"](N, D)."""
    return {**PLANTED, "loss": planted_loss}


@pytest.fixture
def write_results(tmp_path):
    """write_results(results): the path of a results.json with it."""

    def write(results: dict, name: str = "results.json") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results))
        return path

    return write
