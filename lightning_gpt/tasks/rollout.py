"""Answers drawn from a policy: the one place where reinforcement learning generates. Legend: N answers, T tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gpt.data.row_data import shifted
from lightning_gpt.inference import SamplingConfig, generate
from lightning_gpt.nn import GPT
from lightning_gpt.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Answers:
    """What was drawn."""

    tokens: list[list[int]]
    """Of each answer, its end included where it came to one."""
    texts: list[str]
    """The same as text, without the end."""
    ended: Tensor
    """(N,) bool: whether it came to an end."""
    input_ids: Tensor
    """(N, T) prompt and answer without its last token, filled up on the right: a causal network never sees that."""
    targets: Tensor
    """(N, T) the next token where it is the answer's, -100 elsewhere."""

    @property
    def lengths(self) -> Tensor:
        """(N,) tokens of each answer."""
        return (self.targets != -100).sum(-1)


@contextmanager
def fresh_casts() -> Iterator[None]:
    """Keeps autocast's cached copies of weights, made in here without gradients, away from passes that learn."""
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


def draw_answers(
    net: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: SamplingConfig,
    seeds: Sequence[int],
    end_ids: frozenset[int],
) -> Answers:
    """Continues every prompt, all as one batch with a key/value cache; finished rows leave it.

    Args:
        net: the policy.
        tokenizer: its tokenizer.
        prompts: token ids of each.
        max_new_tokens: of each answer.
        sampling: how tokens are drawn.
        seeds: of each row, so that an answer does not depend on the rows beside it or on their number.
        end_ids: tokens that end an answer.
    """
    device = net.token_embedding.weight.device
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    training = net.training
    net.eval()
    try:
        with fresh_casts():
            tokens = generate(
                net,
                prompts,
                max_new_tokens,
                sampling,
                tuple(end_ids),
                generators,
                vocab_size=min(tokenizer.vocab_size, net.config.vocab_size),
            )
    finally:
        net.train(training)
    ended = torch.tensor([row[-1] in end_ids for row in tokens])
    texts = [tokenizer.decode(row[:-1] if done else row) for row, done in zip(tokens, ended.tolist())]
    rows = [[*prompt, *row] for prompt, row in zip(prompts, tokens)]
    marks = [[False] * len(prompt) + [True] * len(row) for prompt, row in zip(prompts, tokens)]
    batch = shifted(rows, marks, net.config.block_size)
    return Answers(tokens, texts, ended.to(device), batch["input_ids"].to(device), batch["targets"].to(device))
