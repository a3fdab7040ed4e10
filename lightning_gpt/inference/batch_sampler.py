"""The next tokens of many requests, each with its own settings, in few calls.

Legend: B requests, N rows of logits, V vocabulary, R uniform numbers for one token.

A request's tokens are a function of its logits, settings and seed alone: token t uses the request's own t-th uniform
numbers, whatever stands beside it and whether it was drawn alone or in a row of drafted tokens.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from lightning_gpt.inference.row_filters import (
    NotFiniteError,
    RowFilters,
    Scratch,
    check_finite,
    draw_rows,
    probabilities,
)
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.inference.speculation import Proposal, draw, judge
from lightning_gpt.inference.token_edits import RowEdits, TokenEdits, edit_logits
from lightning_gpt.inference.vocabulary_groups import largest, top_values

R = 6
"""Uniform numbers for one token: the draw, and further ones where top-p or a draft is rejected."""
AHEAD = 64
"""Tokens whose uniform numbers are drawn at once."""


class Drawn(NamedTuple):
    """One new token."""

    token: int
    logprob: float | None = None
    """Natural log of the network's own probability of it: before bias, penalties, temperature and filters, as OpenAI's
    and vLLM's; None unless asked for."""
    top: list[tuple[int, float]] | None = None
    """The likeliest tokens with their log-probabilities, likeliest first, as many as asked for."""


@dataclass(frozen=True)
class Row:
    """One row of logits: which request, and the drafted tokens between its text and the row."""

    key: int
    then: tuple[int, ...] = ()


class _Request:
    def __init__(
        self, sampling: SamplingConfig, edits: TokenEdits, source: Generator, logprobs: int | None, limit: int
    ) -> None:
        self.sampling, self.edits, self.logprobs, self.limit = sampling, edits, logprobs, limit
        self._source = source
        self._uniforms = np.empty((0, R))
        self._next = 0

    def uniforms(self, ahead: int) -> np.ndarray:
        """(R,) in [0, 1), those of the token `ahead` places after the newest."""
        place = self._next + ahead
        while place >= len(self._uniforms):
            fresh = torch.rand(AHEAD, R, dtype=torch.float64, generator=self._source, device=self._source.device)
            self._uniforms = np.concatenate((self._uniforms[self._next :], fresh.cpu().numpy()))
            place, self._next = place - self._next, 0
        return self._uniforms[place]

    def commit(self, tokens: Sequence[int]) -> None:
        """These were generated."""
        for token in tokens:
            self.edits.count(token)
        self._next += len(tokens)


class BatchSampler:
    """Draws for requests that come and go.

    Args:
        vocab_size: V, ids of the network.
        device: where logits come from.
    """

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size, self.device = vocab_size, torch.device(device)
        self._requests: dict[int, _Request] = {}
        self._scratch = Scratch()
        self._special = 0  # requests that are not plain

    def add(
        self,
        key: int,
        sampling: SamplingConfig,
        prompt_ids: Sequence[int],
        seed: int | Generator,
        banned_ids: Collection[int] = (),
        logprobs: int | None = None,
        limit: int | None = None,
    ) -> None:
        """A new request.

        Args:
            key: names it from here on.
            sampling: its settings.
            prompt_ids: seen before, for the repetition penalty; like banned_ids, those beyond the vocabulary are left
                out.
            seed: of its own generator; or a generator to draw from, on any device.
            banned_ids: never drawn.
            logprobs: 0 = the drawn token's log-probability, n = the n likeliest's too, at most all; None = none.
            limit: ids from there on are never drawn, for networks with more rows than their tokenizer has ids.

        Raises:
            ValueError: logit_bias for an id beyond the vocabulary, a number out of range, or a key that is in use.
        """
        V = self.vocab_size
        if key in self._requests:
            raise ValueError(f"key={key} is in use")
        limit = V if limit is None else min(limit, V)
        if limit < 1:
            raise ValueError(f"limit={limit} leaves no token to draw: it must be at least 1")
        if logprobs is not None and logprobs < 0:
            raise ValueError(f"logprobs={logprobs} must be 0 or more, or None")
        if wrong := [index for index in sampling.logit_bias or () if index >= V]:
            raise ValueError(f"logit_bias has token {wrong[0]}, which is outside the vocabulary of {V}")
        prompt_ids, banned_ids = ([index for index in ids if 0 <= index < V] for ids in (prompt_ids, banned_ids))
        source = seed if isinstance(seed, Generator) else Generator().manual_seed(seed)
        edits = TokenEdits(sampling, prompt_ids, banned_ids)
        logprobs = None if logprobs is None else min(logprobs, limit)
        own = self._requests[key] = _Request(sampling, edits, source, logprobs, limit)
        self._special += not self._plain(own)

    def remove(self, key: int) -> None:
        """Forgets a request."""
        self._special -= not self._plain(self._requests.pop(key))

    def _plain(self, own: _Request) -> bool:
        """Whether a request takes the likeliest token and no more is asked."""
        greedy = own.sampling.temperature == 0 and own.limit == self.vocab_size
        return greedy and not own.edits and own.logprobs is None

    def draw(self, logits_BV: Tensor, keys: Sequence[int]) -> list[Drawn]:
        """The next token of each request, which is counted as generated.

        Args:
            logits_BV: float32, stays as it is.
            keys: the rows' requests, none twice.

        Raises:
            NotFiniteError: a row from which nothing can be drawn; no request has changed then.
        """
        if not self._special:
            return [Drawn(token) for token in self._greedy(logits_BV).tolist()]
        drawn = self._draw(logits_BV, [Row(key) for key in keys])
        for key, own in zip(keys, drawn):
            self._requests[key].commit([own.token])
        return drawn

    def verify(self, logits_NV: Tensor, keys: Sequence[int], proposals: Sequence[Proposal]) -> list[list[Drawn]]:
        """The next tokens of each request, of which drafts were read: at least one, at most one more than drafted.

        A draft without probabilities is kept as long as it says what is drawn anyway, so a request's tokens are those
        of draw() one by one. That is exact rejection sampling for such drafts: a token is kept with the probability
        that the network gives it, and what replaces it comes from the others. Sampled drafts: see speculation.py.

        Args:
            logits_NV: for each request len(proposal) + 1 rows, after its newest token and after each drafted one.
            keys: the requests, none twice.
            proposals: their drafts; an empty one is as draw().

        Raises:
            NotFiniteError: as draw().
        """
        rows = [
            Row(key, tuple(own.tokens[:place]))
            for key, own in zip(keys, proposals, strict=True)
            for place in range(len(own.tokens) + 1)
        ]
        sampled = {
            key
            for key, own in zip(keys, proposals)
            if own.tokens and own.probabilities is not None and self._requests[key].sampling.temperature > 0
        }
        answers = self._judge(logits_NV, rows, [own for key, own in zip(keys, proposals) if key in sampled], sampled)
        answers |= self._compare(logits_NV, rows, {k: p for k, p in zip(keys, proposals) if k not in sampled})
        for key in keys:
            self._requests[key].commit([own.token for own in answers[key]])
        return [answers[key] for key in keys]

    def distributions(self, logits_NV: Tensor, rows: Sequence[Row]) -> Tensor:
        """(N, V) float32, the probabilities that draw() draws by; at temperature 0 all of it on one token."""
        requests = [self._requests[row.key] for row in rows]
        x_NV = self._edited(logits_NV, rows, requests)
        given = torch.zeros(len(rows), x_NV.shape[1], device=x_NV.device)
        greedy = [place for place, own in enumerate(requests) if own.sampling.temperature == 0]
        if greedy:
            index = torch.tensor(greedy, device=x_NV.device)
            given[index, largest(x_NV[index])[1]] = 1.0
        drawn = sorted({*range(len(rows))} - {*greedy})
        if drawn:
            index = torch.tensor(drawn, device=x_NV.device)
            filters = RowFilters.of([requests[place].sampling for place in drawn], x_NV.device)
            given[index] = probabilities(x_NV[index], filters)
        return given

    def guess(self, logits_NV: Tensor, rows: Sequence[Row]) -> tuple[list[int], Tensor]:
        """Tokens drawn from a draft's logits as the network's would be, and the distributions, (N, V): a Proposal's.

        Nothing is counted. The uniform numbers are the requests' own, and not those that judge.
        """
        q_NV = self.distributions(logits_NV, rows)
        uniforms_N = torch.from_numpy(self.uniforms(rows)[:, -3]).to(q_NV.device)
        return draw(q_NV, uniforms_N).tolist(), q_NV

    def uniforms(self, rows: Sequence[Row]) -> np.ndarray:
        """(N, R) float64, the uniform numbers of the tokens that would be drawn in these rows."""
        return np.stack([self._requests[row.key].uniforms(len(row.then)) for row in rows])

    def _compare(
        self, logits_NV: Tensor, rows: Sequence[Row], proposals: dict[int, Proposal]
    ) -> dict[int, list[Drawn]]:
        """Draws in the rows of the named requests; by key, the tokens up to the first that differs from the draft."""
        logits_NV, rows = _chosen(logits_NV, rows, proposals)
        answers: dict[int, list[Drawn]] = {key: [] for key in proposals}
        for row, own in zip(rows, self._draw(logits_NV, rows)):
            answer, draft = answers[row.key], proposals[row.key].tokens
            if len(answer) == len(row.then) and all(a.token == b for a, b in zip(answer, draft)):
                answer.append(own)
        return answers

    def _judge(
        self, logits_NV: Tensor, rows: Sequence[Row], proposals: Sequence[Proposal], keys: Collection[int]
    ) -> dict[int, list[Drawn]]:
        """Rejection sampling of sampled drafts; by key, the tokens."""
        if not proposals:
            return {}
        logits_NV, rows = _chosen(logits_NV, rows, keys)
        judged = judge(self.distributions(logits_NV, rows), proposals, torch.from_numpy(self.uniforms(rows)))
        tokens = dict(zip(dict.fromkeys(row.key for row in rows), judged))
        kept = [place for place, row in enumerate(rows) if len(row.then) < len(tokens[row.key])]
        index = torch.tensor(kept, device=logits_NV.device)
        flat = [token for own in tokens.values() for token in own]
        numbers = self._logprobs(logits_NV[index], [self._requests[rows[place].key] for place in kept], flat)
        drawn = iter([Drawn(token, *own) for token, own in zip(flat, numbers)])
        return {key: [next(drawn) for _ in own] for key, own in tokens.items()}

    def _draw(self, logits_NV: Tensor, rows: Sequence[Row]) -> list[Drawn]:
        """One token per row; nothing is counted."""
        if not rows:
            return []
        requests = [self._requests[row.key] for row in rows]
        x_NV = self._edited(logits_NV, rows, requests)
        greedy = [place for place, own in enumerate(requests) if own.sampling.temperature == 0]
        warm = [place for place, own in enumerate(requests) if own.sampling.temperature > 0]
        tokens_N = torch.empty(len(rows), dtype=torch.int64, device=x_NV.device)
        for places in (greedy, warm):
            if not places:
                continue
            index = torch.tensor(places, device=x_NV.device)
            own_BV = x_NV if len(places) == len(rows) else x_NV[index]
            try:
                if places is greedy:
                    tokens_N[index] = self._greedy(own_BV)
                else:
                    filters = RowFilters.of([requests[place].sampling for place in places], x_NV.device)
                    uniforms = torch.from_numpy(self.uniforms([rows[place] for place in places]))
                    tokens_N[index] = draw_rows(own_BV, filters, uniforms.to(x_NV.device), self._scratch)
            except NotFiniteError as error:
                raise NotFiniteError([places[row] for row in error.rows]) from None
        tokens = tokens_N.tolist()
        return [Drawn(token, *own) for token, own in zip(tokens, self._logprobs(logits_NV, requests, tokens))]

    @staticmethod
    def _greedy(x_BV: Tensor) -> Tensor:
        value_B, token_B = largest(x_BV)
        check_finite(value_B)
        return token_B

    def _edited(self, logits_NV: Tensor, rows: Sequence[Row], requests: Sequence[_Request]) -> Tensor:
        """Logits with bias, penalties, bans and limits."""
        x_NV = logits_NV.float()
        edits = [
            RowEdits(place, own.edits, row.then) for place, (row, own) in enumerate(zip(rows, requests)) if own.edits
        ]
        if edits:
            x_NV = edit_logits(x_NV, edits)
        return self._limited(x_NV, requests)

    @staticmethod
    def _limited(x_NV: Tensor, requests: Sequence[_Request]) -> Tensor:
        """Without the ids that no row may draw; -inf at those that some may not."""
        limits = [own.limit for own in requests]
        x_NV = x_NV[:, : max(limits)]
        if min(limits) < max(limits):
            limit_N1 = torch.tensor(limits, device=x_NV.device)[:, None]
            x_NV = x_NV.masked_fill(torch.arange(x_NV.shape[1], device=x_NV.device) >= limit_N1, -torch.inf)
        return x_NV

    def _logprobs(
        self, logits_NV: Tensor, requests: Sequence[_Request], tokens: Sequence[int]
    ) -> list[tuple[float | None, list[tuple[int, float]] | None]]:
        """For each row the token's log-probability and the likeliest tokens', where asked for."""
        places = [place for place, own in enumerate(requests) if own.logprobs is not None]
        answers: list[tuple[float | None, list[tuple[int, float]] | None]] = [(None, None)] * len(requests)
        if not places:
            return answers
        index = torch.tensor(places, device=logits_NV.device)
        asked = [requests[place] for place in places]
        x_BV = self._limited((logits_NV if len(places) == len(requests) else logits_NV[index]).float(), asked)
        total_B1 = x_BV.logsumexp(1, keepdim=True)
        own_B1 = torch.tensor([[tokens[place]] for place in places], device=x_BV.device)
        most = max(own.logprobs for own in asked)
        values_BK, ids_BK = top_values(x_BV, most) if most else (x_BV[:, :0], own_B1[:, :0])
        numbers = (torch.cat((x_BV.gather(1, own_B1), values_BK), 1) - total_B1).tolist()
        for place, request, own, ids in zip(places, asked, numbers, ids_BK.tolist()):
            top = list(zip(ids, own[1:]))[: request.logprobs]
            answers[place] = own[0], top
        return answers


def _chosen(logits_NV: Tensor, rows: Sequence[Row], keys: Collection[int]) -> tuple[Tensor, list[Row]]:
    """The rows of some requests."""
    places = [place for place, row in enumerate(rows) if row.key in keys]
    if len(places) == len(rows):
        return logits_NV, list(rows)
    index = torch.tensor(places, dtype=torch.int64, device=logits_NV.device)
    return logits_NV[index], [rows[place] for place in places]
