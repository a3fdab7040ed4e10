"""Prompts as text in, text out, piece by piece."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_gpt.inference.generation import engine_for
from lightning_gpt.inference.request import Finish, Overflow, Request
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.inference.speculator import Drafter
from lightning_gpt.nn import GPT
from lightning_gpt.text.prompts import prompt_ids
from lightning_gpt.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextPiece:
    """A little more text of one row."""

    row: int
    text: str
    tokens: int
    """New tokens of the row so far."""
    finish: Finish | None = None
    """Why the row ended, on its last piece: an end token, a stop string, or max_new_tokens."""


def generate_text(
    net: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    overflow: Overflow = "slide",
    prompt_embeds: Sequence[Tensor | None] | None = None,
    banned_ids: Sequence[int] = (),
    end_ids: Collection[int] | None = None,
    drafter: Drafter | None = None,
) -> Iterator[TextPiece]:
    """Continues texts side by side.

    Args:
        net: the network, in evaluation mode.
        tokenizer: its tokenizer.
        prompts: texts, continued side by side; or their ids, where special tokens (a picture's places) are among them.
        max_new_tokens: per row.
        sampling: how tokens are drawn.
        stop: a row ends before any of these strings.
        seed: row r draws from the seed + r, so its text does not depend on the rows beside it.
        overflow: see Request.
        prompt_embeds: see Request.embeds; they belong to prompts given as ids, and need overflow=refuse.
        banned_ids: never drawn, such as the token that stands for a picture.
        end_ids: end a row and are not written; None = the tokenizer's.
        drafter: guesses at what follows; see Engine.

    Raises:
        ValueError: a prompt that the tokenizer cannot write or that does not fit.
    """
    vocab_size = net.config.vocab_size
    ids = [prompt_ids(tokenizer, p, vocab_size) if isinstance(p, str) else list(p) for p in prompts]
    embeds = [None] * len(ids) if prompt_embeds is None else prompt_embeds
    requests = [
        Request(
            row,
            max_new_tokens,
            sampling or SamplingConfig(),
            seed + place,
            stop,
            tuple(tokenizer.end_ids if end_ids is None else end_ids),
            banned_ids=banned_ids,
            embeds=own,
            overflow=overflow,
        )
        for place, (row, own) in enumerate(zip(ids, embeds, strict=True))
    ]
    if not requests or not max_new_tokens:
        return
    counts = [0] * len(ids)
    for place, output in engine_for(net, requests, tokenizer, drafter=drafter).stream(*requests):
        counts[place] += 1
        if output.text or output.finish:
            yield TextPiece(place, output.text, counts[place], output.finish)
