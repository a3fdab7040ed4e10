"""The batching engine: many texts continued side by side, each as if it were alone.

Requests come and go between steps; a step reads new tokens of as many as the scheduler chooses, prompts and generated
ones alike (Yu et al., 2022, Orca; Kwon et al., 2023, vLLM). Legend: N tokens, V vocabulary, B rows of logits.
"""

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from lightning_gpt.inference.batch_sampler import BatchSampler, Drawn
from lightning_gpt.inference.block_pool import BlockPool, mark, root_hash
from lightning_gpt.inference.engine_config import EngineConfig, EngineStats
from lightning_gpt.inference.request import Completion, Finish, Output, Request, TokenLogprob
from lightning_gpt.inference.row_filters import NotFiniteError
from lightning_gpt.inference.runner import Runner, StepInput
from lightning_gpt.inference.scheduler import UNLIMITED, Row, Scheduler
from lightning_gpt.inference.speculation import Proposal
from lightning_gpt.inference.speculator import Drafter
from lightning_gpt.inference.streaming import ByteStreamDecoder, StopMatcher, StreamDecoder, stream_decoder
from lightning_gpt.nn.paged_cache import Span
from lightning_gpt.text.tokenizer import Tokenizer

PROMPT_LOGITS = 1 << 24
"""Logits of a prompt that a step computes at most, where its log-probabilities are asked for."""


class _Active:
    """A request under way."""

    __slots__ = ("chances", "decoder", "end_ids", "made", "matcher", "prompt", "request", "row")

    def __init__(self, request: Request, row: Row) -> None:
        self.request, self.row, self.made = request, row, 0
        self.end_ids = frozenset(request.end_ids)
        self.chances: Tensor | None = None  # what the row's draft was drawn from
        self.decoder: StreamDecoder | ByteStreamDecoder | None = None
        self.matcher: StopMatcher | None = None
        self.prompt: list[TokenLogprob | None] | None = None if request.prompt_logprobs is None else [None]


class Engine:
    """Takes requests at any time and makes their texts, a step at a time.

    A text depends on its request alone, its seed included: not on what is beside it, not on when it came, not on
    whether it was set back for want of memory (up to the rounding of the runner, where two tokens are almost equally
    likely).

    Args:
        runner: computes the steps.
        tokenizer: writes text and finds stop strings; None = tokens only.
        config: how much is done at once.
        vocab_size: ids from here on are never drawn; None = those that the network and the tokenizer have.
        drafter: guesses at what follows (speculator.py), so that a step may give a text several tokens; of this
            engine alone.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer | None = None,
        config: EngineConfig | None = None,
        vocab_size: int | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.runner, self.tokenizer, self.drafter = runner, tokenizer, drafter
        self.config = config = config or EngineConfig()
        self.cache = runner.make_cache(config.blocks(runner), config.block_size, config.cache_dtype)
        self.scheduler = Scheduler(
            BlockPool(self.cache.blocks),
            config.block_size,
            config.max_running,
            config.token_budget,
            config.max_waiting,
        )
        own = runner.config.vocab_size
        if vocab_size is None:
            vocab_size = own if tokenizer is None else min(own, tokenizer.vocab_size)
        self.vocab_size = min(vocab_size, own)
        self.sampler = BatchSampler(self.vocab_size, runner.device)
        self._keep = max(runner.config.block_size // 2, 1)
        self._active: dict[int, _Active] = {}
        self._open: set[int] = set()  # requests that may not end yet
        self._ended: list[Output] = []
        self._added = self._steps = self._prompt_tokens = self._generated = 0
        self._finished: dict[Finish, int] = dict.fromkeys(get_args(Finish), 0)

    def check(self, request: Request) -> None:
        """Whether the request could be taken now. Touches no tensors.

        Raises:
            ValueError: it never could.
            QueueFullError: too many are waiting.
        """
        net = self.runner.config
        prompt, new = request.prompt, request.max_new_tokens
        if not 0 <= min(prompt) <= max(prompt) < net.vocab_size:
            raise ValueError(f"the prompt has a token id outside the vocabulary of {net.vocab_size}")
        if wrong := [index for index in request.banned_ids if not 0 <= index < net.vocab_size]:
            raise ValueError(f"banned_ids has {wrong[0]}, which is outside the vocabulary of {net.vocab_size}")
        if request.overflow == "refuse" and max(len(prompt), len(prompt) + new - 1) > net.block_size:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and max_new_tokens={new} exceed block_size={net.block_size}: ask "
                f"for at most {max(net.block_size - len(prompt) + 1, 0)}, shorten the prompt, or use overflow=slide"
            )
        if request.prompt_logprobs is not None and len(prompt) > net.block_size:
            raise ValueError(
                f"prompt_logprobs of {len(prompt)} tokens exceed block_size={net.block_size}: shorten the prompt"
            )
        if request.stop and self.tokenizer is None:
            raise ValueError("stop strings need an engine with a tokenizer: give it one, or use end_ids")
        if request.embeds is not None:
            shape = tuple(request.embeds.shape)
            if len(shape) != 2 or shape[0] > len(prompt) or shape[1] != net.n_embd:
                raise ValueError(f"embeds have shape {shape}, the prompt asks for {(len(prompt), net.n_embd)}")
        self.scheduler.check(self._limit(request))

    def _limit(self, request: Request) -> int:
        """Positions that a request may need; the last token drawn is never read."""
        size = len(request.prompt)
        return min(max(size, size + request.max_new_tokens - 1), self.runner.config.block_size)

    def add(self, request: Request) -> int:
        """Takes a request; returns the key of its outputs. Raises as `check`."""
        self.check(request)
        key, size = self._added, self.runner.config.block_size
        self._added += 1
        row = Row(
            key,
            list(request.prompt if len(request.prompt) <= size else request.prompt[-self._keep :]),
            self._limit(request),
            (request.priority, key),
            root_hash(request.tenant) if self.config.share_prefixes else None,
            None if request.embeds is None else [mark(bytes(one)) for one in _bytes_of(request.embeds)],
        )
        active = _Active(request, row)
        if active.prompt is not None:
            row.chunk, row.reusable = max(PROMPT_LOGITS // self.runner.config.vocab_size, 1), 0
        if self.tokenizer is not None:
            active.decoder = stream_decoder(self.tokenizer, request.prompt)
            active.matcher = StopMatcher(request.stop) if any(request.stop) else None
        self.sampler.add(
            key, request.sampling, request.prompt, request.seed, request.banned_ids, logprobs=request.logprobs
        )
        self.scheduler.add(row)
        self._active[key] = active
        if request.min_new_tokens and active.end_ids:
            self._open.add(key)
        self._prompt_tokens += len(row.tokens)
        return key

    def cancel(self, key: int) -> bool:
        """Ends a request and frees what it holds; the next step gives its last output. False: it had ended."""
        active = self._active.get(key)
        if active is None:
            return False
        self._end(active, "cancelled")
        self._ended.append(Output(key, None, "", "cancelled"))
        return True

    @property
    def busy(self) -> bool:
        """Whether a step would give anything."""
        return bool(self._active or self._ended)

    def stats(self) -> EngineStats:
        """A snapshot for whoever watches."""
        scheduler = self.scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            blocks=scheduler.pool.blocks,
            blocks_held=scheduler.pool.blocks - scheduler.pool.available,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            shared_tokens=scheduler.shared_tokens,
            generated_tokens=self._generated,
            preemptions=scheduler.preemptions,
            finished=dict(self._finished),
        )

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Computes once; the new tokens of all that made one, and the ends of what was cancelled.

        Raises:
            NotFiniteError: nothing can be drawn for the requests in its `keys`. Once they are cancelled, the others go
                on as if they had never been.
        """
        outputs, self._ended = self._ended, []
        if self.drafter is not None:
            self._guess()
        plan = self.scheduler.schedule()
        if not plan:
            return outputs
        tokens: list[int] = []
        spans, wanted, embeds = [], [], {}
        drawing: list[tuple[_Active, int]] = []  # who draws, and the first of its rows of logits
        scoring: list[tuple[_Active, int, int, int]] = []  # whose prompt is scored: rows of logits, first target
        active_of, advance = self._active, self.scheduler.advance
        for row, count in plan:
            start, past, text = len(tokens), row.computed, row.tokens
            active = active_of[row.key]
            if count == 1:
                tokens.append(text[past])
            else:
                tokens += text[past : past + count]
                tokens += row.draft
            spans.append(Span(start, count, past, row.blocks))
            if active.prompt is not None and len(active.prompt) < len(text) and not active.made:
                first = max(len(active.prompt) - 1, past)
                scored = max(min(past + count, len(text) - 1) - first, 0)
                scoring.append((active, len(wanted), scored, first + 1))
                wanted += range(start + first - past, start + first - past + scored)
            missing = len(text) - past
            if count >= missing:
                drawing.append((active, len(wanted)))
                wanted += range(start + missing - 1, start + count)
            if active.request.embeds is not None:
                for place in range(past, min(past + count, len(active.request.embeds))):
                    embeds[start + place - past] = active.request.embeds[place]
        started = perf_counter()
        logits_BV = self.runner.forward(StepInput(tokens, spans, wanted, embeds), self.cache)
        self._steps += 1
        for active, first, scored, place in scoring:
            self._score(active, logits_BV[first : first + scored], place)
        for row, count in plan:
            if row.computed + count < len(row.tokens):
                advance(row, row.computed + count)
        try:
            made = self._draw(logits_BV, drawing, len(wanted))
        except NotFiniteError as error:
            self._ended = outputs
            owners = [active.row.key for active, _ in drawing for _ in range(len(active.row.draft) + 1)]
            error.keys = sorted({owners[row] for row in error.rows})
            raise
        if self.drafter is not None:
            outcomes = {active.row.key: (len(active.row.draft), len(new)) for (active, _), new in zip(drawing, made)}
            self.drafter.observe(outcomes, len(tokens), perf_counter() - started)
        for (active, _), drawn in zip(drawing, made):
            self._settle(active, drawn, outputs)
        return outputs

    def _guess(self) -> None:
        rows = [row for row in self.scheduler.running if len(row.tokens) - row.computed == 1]
        for row, proposal in zip(rows, self.drafter.propose(rows, self.sampler), strict=True):
            row.draft = list(proposal.tokens)
            self._active[row.key].chances = proposal.probabilities

    def _draw(self, logits_BV: Tensor, drawing: list[tuple[_Active, int]], wanted: int) -> list[list[Drawn]]:
        """The next tokens of those that draw: one each, and one more for each guess that was right.

        Every token is drawn from the network's own distribution behind those before it, so guesses change nothing but
        the number of steps (and, where they are sampled, which draw of it a seed gives).
        """
        if not drawing:
            return []
        if self.vocab_size < logits_BV.shape[1]:
            logits_BV = logits_BV[:, : self.vocab_size]
        if self._open:
            self._forbid_ends(logits_BV, drawing)
        keys = [active.row.key for active, _ in drawing]
        if wanted == len(keys):
            return [[drawn] for drawn in self.sampler.draw(logits_BV, keys)]
        proposals, places = [], []
        for active, first in drawing:
            draft, chances = tuple(active.row.draft), active.chances
            proposals.append(Proposal(draft, None if chances is None else chances[: len(draft)]))
            places += range(first, first + len(draft) + 1)
        return self.sampler.verify(logits_BV if len(places) == len(logits_BV) else logits_BV[places], keys, proposals)

    def _forbid_ends(self, logits_BV: Tensor, drawing: list[tuple[_Active, int]]) -> None:
        for active, first in drawing:
            if active.row.key in self._open:
                ends = [index for index in active.end_ids if index < self.vocab_size]
                rows = max(min(active.request.min_new_tokens - active.made, len(active.row.draft) + 1), 0)
                logits_BV[first : first + rows, ends] = -torch.inf
                if active.made + 1 >= active.request.min_new_tokens:
                    self._open.discard(active.row.key)

    def _score(self, active: _Active, logits_NV: Tensor, place: int) -> None:
        """Log-probabilities of the prompt's tokens from `place` on."""
        targets = active.row.tokens[place : place + len(logits_NV)]
        logprobs_NV = torch.log_softmax(logits_NV, -1)
        own = logprobs_NV[torch.arange(len(targets)), targets].tolist()
        best = logprobs_NV.topk(min(active.request.prompt_logprobs, logits_NV.shape[1]), -1)
        tops = zip(best.indices.tolist(), best.values.tolist())
        active.prompt += [TokenLogprob(t, value, list(zip(*top))) for t, value, top in zip(targets, own, tops)]

    def _settle(self, active: _Active, drawn: list[Drawn], outputs: list[Output]) -> None:
        """New tokens become part of the text; it may end with any of them."""
        row, request = active.row, active.request
        if row.draft:
            row.draft.clear()
        text = row.tokens
        if not request.max_new_tokens:
            self.scheduler.advance(row, len(text))
            self._end(active, "length")
            outputs.append(Output(row.key, None, "", "length", None, active.prompt))
            return
        for token, logprob, top in drawn:
            text.append(token)
            active.made += 1
            self._generated += 1
            output = Output(row.key, token)
            outputs.append(output)
            if logprob is not None:
                output.logprob = TokenLogprob(token, logprob, top or [])
            if active.made == 1 and active.prompt is not None:
                output.prompt = active.prompt
            finish: Finish | None = "length" if active.made == request.max_new_tokens else None
            if token in active.end_ids:
                finish = "eos"
            if active.decoder is not None:
                output.text, finish = self._write(active, token, finish)
            if finish is not None:
                break
        self.scheduler.advance(row, len(text) - 1)
        if finish is not None:
            output.finish = finish
            self._end(active, finish)
        elif len(text) > self.runner.config.block_size:
            self.scheduler.restart(row, text[-self._keep :])

    @staticmethod
    def _write(active: _Active, token: int, finish: Finish | None) -> tuple[str, Finish | None]:
        """What is certain of the text after one more token, and whether it ends now."""
        unwritten = finish == "eos" or token in active.request.unwritten_ids
        piece = "" if unwritten else active.decoder.push(token)
        if finish is not None:
            piece += active.decoder.finish()
        matcher = active.matcher
        if matcher is None:
            return piece, finish
        piece = matcher.push(piece)
        if matcher.stopped:
            return piece, "stop"
        return (piece if finish is None else piece + matcher.finish()), finish

    def _end(self, active: _Active, finish: Finish) -> None:
        key = active.row.key
        self.scheduler.remove(active.row)
        self.sampler.remove(key)
        if self.drafter is not None:
            self.drafter.remove(key)
        del self._active[key]
        self._open.discard(key)
        self._finished[finish] += 1

    def stream(self, *requests: Request) -> Iterator[tuple[int, Output]]:
        """(which of the requests, its output) as they come, until all have ended; for an engine that nobody else
        drives. They are cancelled when the reader stops. Raises as `check`, before anything is generated.
        """
        for request in requests:
            self.check(request)
        places: dict[int, int] = {}
        try:
            left = list(enumerate(requests))[::-1]
            most = self.config.max_waiting or UNLIMITED
            while left or places:
                while left and len(self.scheduler.waiting) < most:
                    place, request = left.pop()
                    places[self.add(request)] = place
                for output in self.step():
                    place = places.get(output.key)
                    if place is None:
                        continue
                    if output.finish is not None:
                        del places[output.key]
                    yield place, output
        finally:
            for key in places:
                self.cancel(key)

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """All of the texts at once, in the order of the requests. As `stream`."""
        completions = [Completion() for _ in requests]
        for place, output in self.stream(*requests):
            completions[place].add(output)
        return completions


def _bytes_of(embeds: Tensor) -> np.ndarray:
    """(T, bytes) uint8."""
    return embeds.detach().cpu().contiguous().view(torch.uint8).numpy()
