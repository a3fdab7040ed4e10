import math

import pytest

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn.flops import training_flops_per_token
from lightning_gpt.optim import Cosine

KEYS = {
    "step",
    "train/loss",
    "train/perplexity",
    "optim/lr",
    "optim/gradient_norm",
    "progress/tokens",
    "memory/peak_gib",
    "speed/tokens_per_second",
    "speed/tflops",
    "speed/mfu",
}


def rows(run, key="train/loss"):
    return [row for row in read_metrics(run / "metrics.jsonl") if key in row]


def test_documented_keys(lightning_gpt):
    run = lightning_gpt("fit")
    for row in rows(run):
        assert set(row) == KEYS
        assert row["train/perplexity"] == pytest.approx(math.exp(row["train/loss"]))
        assert row["speed/tflops"] > 0
        assert row["speed/mfu"] > 0
    assert [row["progress/tokens"] for row in rows(run)] == [64 * step for step in range(1, 7)]
    factors = [Cosine(warmup_steps=2).factor(step, 6) for step in range(6)]
    assert [row["optim/lr"] for row in rows(run)] == [0.01 * factor for factor in factors]
    for row in rows(run, "val/loss"):
        assert set(row) == {"step", "val/loss", "val/perplexity", "val/bits_per_byte"}


def test_teraflops_are_the_analytic_count(lightning_gpt, corpus):
    from lightning_gpt.data.corpus_meta import CorpusMeta

    vocab_size = CorpusMeta.load(corpus).tokenizer.vocab_size
    each = training_flops_per_token(GPTConfig(vocab_size=vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=32), 16)
    for row in rows(lightning_gpt("fit")):
        assert row["speed/tflops"] * 1e12 == pytest.approx(row["speed/tokens_per_second"] * each)


def test_steps_are_optimizer_steps(lightning_gpt):
    run = lightning_gpt(
        "fit",
        *("--trainer.accumulate_grad_batches", 4, "--trainer.max_steps", 10),
        *("--trainer.log_every_n_steps", 2, "--trainer.val_check_interval", 5, "--last.every_n_steps", 4),
    )
    assert [row["step"] for row in rows(run)] == [2, 4, 6, 8, 10]
    assert [row["progress/tokens"] for row in rows(run)] == [4 * 64 * step for step in (2, 4, 6, 8, 10)]
    assert [row["step"] for row in rows(run, "val/loss")] == [5, 10]
    assert rows(run)[-1]["optim/lr"] < rows(run)[0]["optim/lr"]


def test_steps_run_on_over_the_end_of_an_epoch(lightning_gpt):
    # 18,000 training tokens are about 70 steps of 4 x 64
    run = lightning_gpt(
        "fit",
        *("--trainer.accumulate_grad_batches", 4, "--trainer.max_steps", 160),
        *("--trainer.log_every_n_steps", 40, "--trainer.val_check_interval", 50),
    )
    assert [row["step"] for row in rows(run)] == [40, 80, 120, 160]
    assert [row["step"] for row in rows(run, "val/loss")] == [50, 100, 150, 160]
