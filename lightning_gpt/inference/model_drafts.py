"""A small network that guesses how texts go on, or the first layers of the large one.

Legend: N asks, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_gpt.inference.batch_sampler import BatchSampler, Row
from lightning_gpt.inference.block_pool import BlockPool
from lightning_gpt.inference.drafts import Ask
from lightning_gpt.inference.runner import Runner, StepInput
from lightning_gpt.inference.speculation import Proposal
from lightning_gpt.inference.vocabulary_groups import largest
from lightning_gpt.nn import GPT
from lightning_gpt.nn.early_exit import EarlyExit
from lightning_gpt.nn.paged_cache import Span

AT_ONCE = 512
"""Tokens of a text that are read in one step."""
IN_A_STEP = 4096
"""Tokens of all texts that are read in one step."""


class _Text:
    """What the draft has read of one text."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.blocks: list[int] = []


class DraftModel:
    """Another network of the same vocabulary; it reads every text into a cache of its own.

    Args:
        runner: computes the draft's steps.
        vocab_size: of the network that it guesses for.
        texts: how many it keeps at once, of full length; with more, some get no guess.
        sampled: draw the guesses as the network would, to be judged by rejection sampling: more of them are kept at
            high temperatures, but how long drafts are then changes which text a seed gives (never its distribution).
            Otherwise the likeliest tokens are guessed and a seed gives the same text with and without a draft.

    Raises:
        ValueError: another vocabulary.
    """

    def __init__(self, runner: Runner, vocab_size: int, texts: int = 8, sampled: bool = False) -> None:
        if runner.config.vocab_size != vocab_size:
            raise ValueError(
                f"the draft has a vocabulary of {runner.config.vocab_size} tokens, the network of {vocab_size}: a "
                "draft must have been trained with the same tokenizer"
            )
        self.runner, self.sampled = runner, sampled
        size = runner.config.block_size
        self.cache = runner.make_cache(texts * -(-size // 16), 16)
        self._pool = BlockPool(self.cache.blocks)
        self._texts: dict[int, _Text] = {}

    def remove(self, key: int) -> None:
        """As Draft."""
        text = self._texts.pop(key, None)
        if text is not None:
            self._pool.release(text.blocks)

    @torch.inference_mode()
    def propose(self, asks: Sequence[Ask], sampler: BatchSampler) -> list[Proposal]:
        """As Draft. Texts beyond the draft's own block_size, or for which it has no blocks left, get no guess."""
        counts = [self._room(ask) for ask in asks]
        going = [place for place, count in enumerate(counts) if count]
        self._catch_up([asks[place] for place in going])
        guesses: list[list[int]] = [[] for _ in asks]
        chances: list[list[Tensor]] = [[] for _ in asks]
        while going:
            logits_NV = self._read([(asks[place], guesses[place]) for place in going])
            rows = [Row(asks[place].key, tuple(guesses[place])) for place in going]
            if self.sampled:
                tokens, q_NV = sampler.guess(logits_NV, rows)
                for place, q_V in zip(going, q_NV):
                    chances[place].append(q_V)
            else:
                tokens = largest(logits_NV[:, : sampler.vocab_size])[1].tolist()
            for place, token in zip(going, tokens):
                guesses[place].append(token)
            going = [place for place in going if len(guesses[place]) < counts[place]]
        return [Proposal(guess, torch.stack(own) if own else None) for guess, own in zip(guesses, chances, strict=True)]

    def _room(self, ask: Ask) -> int:
        """How many tokens can be guessed; their blocks are taken."""
        text = self._texts.setdefault(ask.key, _Text())
        # What was read stays as far as the text begins with it; of the text the last token at least is read anew.
        same = min(len(text.read), len(ask.tokens) - 1)
        if text.read[:same] != list(ask.tokens[:same]):
            same = next(place for place in range(same) if text.read[place] != ask.tokens[place])
        del text.read[same:]
        count = min(ask.count, self.runner.config.block_size - len(ask.tokens) + 1)
        missing = -(-(len(ask.tokens) + count - 1) // self.cache.block_size) - len(text.blocks)
        if count < 1 or missing > self._pool.available:
            return 0
        text.blocks += self._pool.take(max(missing, 0))
        return count

    def _catch_up(self, asks: Sequence[Ask]) -> None:
        """Reads long texts up to their last few tokens."""
        while behind := [ask for ask in asks if len(ask.tokens) - len(self._texts[ask.key].read) > AT_ONCE]:
            self._read([(ask, []) for ask in behind])

    def _read(self, texts: Sequence[tuple[Ask, list[int]]]) -> Tensor:
        """Reads on in each text and the guesses behind it; (N, V) logits after what was read."""
        parts = []
        most = min(AT_ONCE, max(IN_A_STEP // max(len(texts), 1), 1))
        for ask, guess in texts:
            done = len(self._texts[ask.key].read)
            unread = [*ask.tokens[done:], *guess[max(done - len(ask.tokens), 0) :]]
            parts.append(unread[:most] if len(unread) > AT_ONCE else unread)
        tokens, spans, wanted = [], [], []
        for (ask, _), part in zip(texts, parts):
            own = self._texts[ask.key]
            spans.append(Span(len(tokens), len(part), len(own.read), own.blocks))
            tokens += part
            own.read += part
            wanted.append(len(tokens) - 1)
        return self.runner.forward(StepInput(tokens, spans, wanted), self.cache)


def early_exit(
    net: GPT, layers: int, make_runner: Callable[[GPT], Runner], texts: int = 8, sampled: bool = False
) -> DraftModel:
    """The first layers of the network itself as its draft (self-speculation).

    Args:
        net: the whole network.
        layers: how many of its layers guess.
        make_runner: for the shortened network, which shares its weights.
        texts, sampled: see DraftModel.

    Raises:
        ValueError: layers out of range.
    """
    return DraftModel(make_runner(EarlyExit(net, layers)), net.config.vocab_size, texts, sampled)
