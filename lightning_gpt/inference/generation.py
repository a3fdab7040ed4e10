"""Generation of a batch of rows by ids, on the engine. Legend: B rows, T tokens, C width."""

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor

from lightning_gpt.inference.engine import Engine
from lightning_gpt.inference.engine_config import EngineConfig
from lightning_gpt.inference.request import Overflow, Request
from lightning_gpt.inference.runners import make_runner
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.inference.speculator import Drafter
from lightning_gpt.nn import GPT
from lightning_gpt.text.tokenizer import Tokenizer

MAX_ROWS = 512
"""Rows that are computed side by side; more wait for a place."""
TOKEN_BUDGET = 8192
"""Tokens that a step reads at most."""
BLOCK_SIZE = 16


def engine_for(
    net: GPT,
    requests: Sequence[Request],
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
    max_running: int = MAX_ROWS,
    drafter: Drafter | None = None,
) -> Engine:
    """An engine with room for these requests, so that none is set back.

    Args:
        net: in evaluation mode; with its weights as they are now.
        requests: of which at most max_running are computed side by side.
        tokenizer, vocab_size: as Engine.
        max_running: less takes less memory.
        drafter: as Engine.
    """
    size = net.config.block_size
    lengths = (min(len(one.prompt) + one.max_new_tokens, size) for one in requests)
    needs = sorted((-(-length // BLOCK_SIZE) for length in lengths), reverse=True)[:max_running]
    rows = max(len(needs), 1)
    # The scheduler starts a row only if a block is left for each that runs.
    config = EngineConfig(rows, max(TOKEN_BUDGET, rows), sum(needs) + rows, block_size=BLOCK_SIZE)
    return Engine(make_runner(net), tokenizer, config, vocab_size, drafter)


class Generation:
    """A batch of rows being continued. Iterating gives, step by step, the list of (row, token id) just made; rows that
    begin alike wait for the first of them, and rows beyond MAX_ROWS for a place.

    Args:
        net: the network, best in evaluation mode: dropout applies otherwise.
        prompts: token ids per row, at least one each.
        max_new_tokens: per row.
        sampling: how tokens are drawn.
        eos_ids: a row ends with any of these (which is still given out).
        generator: gives every row the seed of its noise, in their order: one for all, or one per row; None = torch's
            global one.
        overflow: what happens when a row fills block_size: refuse = ValueError before anything is generated; slide =
            the row forgets its older half and its window is read again; see Request.
        vocab_size: ids from here on are never drawn, for networks with more rows than their tokenizer has ids.
        prompt_embeds: per row (T, C) for its T prompt tokens, read once in place of their embeddings (pictures,
            nn/vision_language.py), or None = the ids'. What is generated is read by its ids. Not with overflow=slide,
            which reads windows again when only ids are left.
        banned_ids: never drawn, such as the token that stands for a picture.

    Raises:
        ValueError: an empty prompt, a token id beyond the vocabulary, an overflow, or embeddings of another shape.
    """

    def __init__(
        self,
        net: GPT,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: SamplingConfig | None = None,
        eos_ids: Sequence[int] = (),
        generator: Generator | Sequence[Generator] | None = None,
        overflow: Overflow = "refuse",
        vocab_size: int | None = None,
        prompt_embeds: Sequence[Tensor | None] | None = None,
        banned_ids: Sequence[int] = (),
    ) -> None:
        config = net.config
        if overflow not in ("refuse", "slide"):
            raise ValueError(f"overflow={overflow!r} is unknown: use refuse or slide")
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens={max_new_tokens} must not be negative")
        if wrong := [index for index in banned_ids if not 0 <= index < config.vocab_size]:
            raise ValueError(f"banned_ids has {wrong[0]}, which is outside the vocabulary of {config.vocab_size}")
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {row} is empty: give at least one token, such as the end-of-text token")
            if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
                raise ValueError(f"prompt {row} has a token id outside the vocabulary of {config.vocab_size}")
            if overflow == "refuse" and len(prompt) + max_new_tokens - 1 > config.block_size:
                raise ValueError(
                    f"prompt {row} of {len(prompt)} tokens and max_new_tokens={max_new_tokens} exceed block_size="
                    f"{config.block_size}: ask for at most {max(config.block_size - len(prompt) + 1, 0)}, shorten the "
                    "prompt, or use overflow=slide"
                )
        if prompt_embeds is not None:
            _check_embeds(prompt_embeds, prompts, config.n_embd, overflow)
        self.net, self.generator, self.vocab_size = net, generator, vocab_size
        sampling = sampling or SamplingConfig()
        self._seeded = sampling.temperature > 0
        self._settings = {
            "max_new_tokens": max_new_tokens,
            "sampling": sampling,
            "end_ids": tuple(eos_ids),
            "overflow": overflow,
            "banned_ids": tuple(banned_ids),
        }
        self._rows = list(zip(prompts, prompt_embeds or [None] * len(prompts)))
        self._stopped: list[int] = []

    def stop(self, row: int) -> None:
        """Ends a row before the next step, for instance because a stop string appeared in its text."""
        self._stopped.append(row)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if not self._rows or not self._settings["max_new_tokens"]:
            return
        seeds = self._seeds() if self._seeded else [0] * len(self._rows)
        rows = zip(self._rows, seeds)
        requests = [Request(prompt, seed=seed, embeds=embeds, **self._settings) for (prompt, embeds), seed in rows]
        engine = engine_for(self.net, requests, vocab_size=self.vocab_size)
        keys = [engine.add(request) for request in requests]
        place = {key: row for row, key in enumerate(keys)}
        while engine.busy:
            made = [(place[output.key], output.token) for output in engine.step() if output.token is not None]
            if made:
                yield made
            while self._stopped:
                engine.cancel(keys[self._stopped.pop()])

    def _seeds(self) -> list[int]:
        """One for each row."""
        one = self.generator is None or isinstance(self.generator, Generator)
        generators = [self.generator] * len(self._rows) if one else self.generator
        if len(generators) != len(self._rows):
            raise ValueError(f"{len(generators)} generators for {len(self._rows)} prompts: give one, or one per row")
        return [
            int(torch.randint(1 << 62, (), generator=own, device="cpu" if own is None else own.device))
            for own in generators
        ]


def _check_embeds(
    embeds: Sequence[Tensor | None], prompts: Sequence[Sequence[int]], width: int, overflow: Overflow
) -> None:
    """Raises ValueError unless every row's embeddings belong to its prompt."""
    if overflow == "slide" and any(row is not None for row in embeds):
        raise ValueError(
            "overflow=slide reads a window again by its ids, which are not the prompt_embeds: use overflow=refuse and "
            "fewer new tokens"
        )
    if len(embeds) != len(prompts):
        raise ValueError(f"{len(embeds)} prompt_embeds for {len(prompts)} prompts: give one per row, None without")
    for row, (own, prompt) in enumerate(zip(embeds, prompts)):
        if own is not None and own.shape != (len(prompt), width):
            raise ValueError(
                f"prompt_embeds of row {row} have shape {tuple(own.shape)}, its prompt asks for {(len(prompt), width)}"
            )


def generate(
    net: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    eos_ids: Sequence[int] = (),
    generator: Generator | Sequence[Generator] | None = None,
    overflow: Overflow = "refuse",
    vocab_size: int | None = None,
    prompt_embeds: Sequence[Tensor | None] | None = None,
    banned_ids: Sequence[int] = (),
) -> list[list[int]]:
    """The new tokens of every row at once. Arguments as Generation."""
    new: list[list[int]] = [[] for _ in prompts]
    settings = (sampling, eos_ids, generator, overflow, vocab_size, prompt_embeds, banned_ids)
    for step in Generation(net, prompts, max_new_tokens, *settings):
        for row, token in step:
            new[row].append(token)
    return new


def row_generators(seed: int, rows: int, device: torch.device | str = "cpu") -> list[Generator]:
    """One generator per row, seeded seed, seed + 1, ...: a row's text does not depend on the rows beside it."""
    return [Generator(device).manual_seed(seed + row) for row in range(rows)]
