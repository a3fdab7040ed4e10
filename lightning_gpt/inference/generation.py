"""Token generation with a key/value cache. Legend: B rows, T tokens, C width, V vocabulary.

`prefill` and `decode` are the two passes through the network; `Generation` keeps the rows: finished ones leave the
batch, rows of different length stay right-padded, each at its own position.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from lightning_gpt.inference.sampling import SamplingConfig, sample
from lightning_gpt.nn import GPT, KVCache

Overflow = Literal["refuse", "slide"]


@torch.inference_mode()
def prefill(
    net: GPT, windows: Sequence[Sequence[int]], cache: KVCache, embeds: Sequence[Tensor | None] | None = None
) -> Tensor:
    """Reads whole windows into an empty cache.

    Args:
        windows: token ids per row, right-padded here: what is written behind a row's end stays masked until real
            tokens take its place.
        embeds: per row (T, C), read in place of the token embeddings; None = the ids'.

    Returns:
        (B, V) logits after each row's last token.
    """
    device = net.token_embedding.weight.device
    lengths = [len(window) for window in windows]
    longest = max(lengths)
    input_ids_BT = torch.tensor([[*window, *[0] * (longest - len(window))] for window in windows], device=device)
    ends = torch.tensor(lengths, device=device)
    cache.ends = ends if min(lengths) < longest else None
    embedded_BTC = None
    if embeds is not None and any(row is not None for row in embeds):
        embedded_BTC = net.token_embedding(input_ids_BT)
        for row, own in enumerate(embeds):
            if own is not None:
                embedded_BTC[row, : len(own)] = own
    hidden_BTC = net.hidden(input_ids_BT, cache=cache, embedded_BTC=embedded_BTC)
    cache.ends = None
    return net.logits(hidden_BTC[torch.arange(len(windows), device=device), ends - 1])


@torch.inference_mode()
def decode(net: GPT, tokens_B: Tensor, cache: KVCache, positions_B: Tensor | None = None) -> Tensor:
    """Reads one more token per row.

    Args:
        tokens_B: int64.
        cache: of all tokens before.
        positions_B: int64, each row's position; None = all rows continue at cache.length, which needs no mask.

    Returns:
        (B, V) logits.
    """
    positions = None if positions_B is None else positions_B[:, None]
    return net.logits(net.hidden(tokens_B[:, None], positions, cache)[:, -1])


class Generation:
    """A batch of rows being continued. Iterating gives, step by step, the list of (row, token id) just made.

    Args:
        net: the network, best in evaluation mode: dropout applies otherwise.
        prompts: token ids per row, at least one each.
        max_new_tokens: per row.
        sampling: how tokens are drawn.
        eos_ids: a row ends with any of these (which is still given out).
        generator: one, or one per row; see `sample`.
        overflow: what happens when a row fills block_size: refuse = ValueError before anything is generated; slide =
            the row forgets its older half and its window is read again (positions start anew), so the cost of
            forgetting is spread over block_size / 2 tokens. A longer prompt starts with its last block_size / 2.
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
        self.net = net
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling or SamplingConfig()
        self.eos_ids = frozenset(eos_ids)
        self.generator = generator
        self.vocab_size = vocab_size
        self._keep = max(config.block_size // 2, 1)
        self._rows = list(range(len(prompts)))
        self._windows = [list(p) if len(p) <= config.block_size else list(p[-self._keep :]) for p in prompts]
        self._embeds = prompt_embeds
        self._stopped: set[int] = set()
        longest = max((len(window) for window in self._windows), default=0)
        weight = net.token_embedding.weight
        self._device = weight.device
        self._banned = torch.tensor(sorted(banned_ids), dtype=torch.int64, device=self._device)
        # On CPU products of one bfloat16 query with many keys are two to four times slower than in float32.
        self._dtype = torch.promote_types(weight.dtype, torch.float32) if self._device.type == "cpu" else weight.dtype
        self._size = min(config.block_size, longest + max_new_tokens)
        self._seen_BV: Tensor | None = None
        if self.sampling.repetition_penalty != 1.0:
            self._seen_BV = torch.zeros(len(prompts), config.vocab_size, dtype=torch.bool, device=self._device)
            for row, prompt in enumerate(prompts):
                self._seen_BV[row, list(prompt)] = True

    def stop(self, row: int) -> None:
        """Ends a row before the next step, for instance because a stop string appeared in its text."""
        self._stopped.add(row)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if not self._rows or not self.max_new_tokens:
            return
        logits_BV = self._read_windows()
        for step in range(1, self.max_new_tokens + 1):
            tokens_B = self._draw(logits_BV)
            made = list(zip(self._rows, tokens_B.tolist()))
            for window, (_, token) in zip(self._windows, made):
                window.append(token)
            yield made
            if step == self.max_new_tokens:
                return
            ended = self._stopped | {row for row, token in made if token in self.eos_ids}
            if ended:
                tokens_B = self._drop(ended, tokens_B)
                if not self._rows:
                    return
            logits_BV = self._advance(tokens_B)

    def _draw(self, logits_BV: Tensor) -> Tensor:
        """The next token of every row, (B,)."""
        if len(self._banned):
            logits_BV = logits_BV.index_fill(1, self._banned, -torch.inf)
        if self.vocab_size is not None:
            logits_BV = logits_BV[:, : self.vocab_size]
        generator = self.generator
        if generator is not None and not isinstance(generator, Generator):
            generator = [generator[row] for row in self._rows]
        seen_BV = self._seen_BV
        if seen_BV is not None:
            seen_BV = seen_BV[:, : logits_BV.shape[1]]
        with torch.inference_mode():
            tokens_B = sample(logits_BV, self.sampling, generator, seen_BV)
        if self._seen_BV is not None:
            self._seen_BV[torch.arange(len(tokens_B), device=self._device), tokens_B] = True
        return tokens_B

    def _drop(self, ended: set[int], tokens_B: Tensor) -> Tensor:
        """Takes ended rows out of the batch; returns the tokens of the others."""
        stay = [index for index, row in enumerate(self._rows) if row not in ended]
        if len(stay) == len(self._rows):
            return tokens_B
        self._rows = [self._rows[index] for index in stay]
        self._windows = [self._windows[index] for index in stay]
        index = torch.tensor(stay, dtype=torch.int64, device=self._device)
        self._cache.select(index)
        if self._windows:  # the longest row may have left; the newest token is not in the cache yet
            self._cache.length = max(len(window) for window in self._windows) - 1
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[index]
        return tokens_B[index]

    def _advance(self, tokens_B: Tensor) -> Tensor:
        """Logits after the newest tokens."""
        lengths = [len(window) for window in self._windows]
        if max(lengths) > self.net.config.block_size:
            for index, length in enumerate(lengths):
                if length > self.net.config.block_size:
                    self._windows[index] = self._windows[index][-self._keep :]
            return self._read_windows()
        if min(lengths) == max(lengths):
            return decode(self.net, tokens_B, self._cache)
        return decode(self.net, tokens_B, self._cache, torch.tensor(lengths, device=self._device) - 1)

    def _read_windows(self) -> Tensor:
        self._cache = KVCache(self.net.config, len(self._rows), self._size, self._dtype, self._device)
        return prefill(self.net, self._windows, self._cache, self._embeds)


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
