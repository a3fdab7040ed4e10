"""log p of continuations and whole texts, in batches. Legend: B rows, T tokens, C width, V vocabulary, N places that
are scored, E scored tokens."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_gpt.evaluation.shared_prefixes import Family, Row, families
from lightning_gpt.inference.one_by_one import prefill
from lightning_gpt.nn import GPT, KVCache

HEAD_LOGITS = 1 << 25
"""The most logits that are held at once."""
CACHED = 4
"""Tokens that may lie in the cache of a pass, for each that the pass reads."""
SECONDS = 10.0
"""Between lines of progress."""


class Scorer:
    """Reads texts in batches of about equal length; only places that are scored get logits.

    Args:
        net: in evaluation mode.
        batch_tokens: tokens of a forward pass, filling included.
        share: read common beginnings once, through the key/value cache.
        say: print progress.
    """

    def __init__(self, net: GPT, batch_tokens: int = 8192, share: bool = True, say: bool = True) -> None:
        moe = net.config.moe
        if moe is not None and moe.routing == "expert_choice":
            share, batch_tokens = False, 1  # such experts choose among the tokens of a batch, and know no cache
        self.net, self.batch_tokens, self.share, self.say = net, batch_tokens, share, say
        self.limit = net.config.block_size
        self.device, self.dtype = net.token_embedding.weight.device, net.token_embedding.weight.dtype

    @torch.inference_mode()
    def continuations(self, requests: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """(log p of the continuation, whether greedy decoding would write it) of each (context, continuation).

        What is longer than the network's context loses its beginning, as in lm-eval's model of transformers:
        (context + continuation)[-(block_size + 1):]. Requests that differ in their last token alone, such as the
        letters of one question, are one row.
        """
        members: dict[tuple[int, ...], list[int]] = {}
        for number, (context, continuation) in enumerate(requests):
            inputs = (context + continuation)[-(self.limit + 1) :][:-1]
            members.setdefault(tuple(inputs), []).append(number)
        rows = []
        for inputs, numbers in members.items():
            scored = max(len(requests[number][1]) for number in numbers)
            rows.append(Row(inputs, min(scored, len(inputs))))
        totals, greedy = [0.0] * len(requests), [True] * len(requests)
        for batch, hidden_NC in self._passes(rows):
            places, targets, owners = [], [], []
            before = 0
            for row in batch:
                for number in members[row.tokens]:
                    wanted = requests[number][1][-row.scored :]
                    places += range(before + row.scored - len(wanted), before + row.scored)
                    targets += wanted
                    owners += [number] * len(wanted)
                before += row.scored
            for number, value, best in zip(owners, *self._tokens(hidden_NC, places, targets)):
                totals[number] += value
                greedy[number] &= best
        return list(zip(totals, greedy))

    def _tokens(self, hidden_NC: Tensor, places: list[int], targets: list[int]) -> tuple[list[float], list[bool]]:
        """log p of each target (E) at its place among the N, and whether it is the likeliest token there."""
        place_E = torch.tensor(places, dtype=torch.int64, device=self.device)
        target_E = torch.tensor(targets, dtype=torch.int64, device=self.device)
        value_E = torch.empty(len(places), device=self.device)
        best_E = torch.empty(len(places), dtype=torch.bool, device=self.device)
        step = max(HEAD_LOGITS // self.net.config.vocab_size, 1)
        for start in range(0, len(hidden_NC), step):
            logits_NV = self.net.logits(hidden_NC[start : start + step]).float()
            here = ((place_E >= start) & (place_E < start + step)).nonzero()[:, 0]
            place, target = place_E[here] - start, target_E[here]
            value_E[here] = logits_NV[place, target] - logits_NV.logsumexp(-1)[place]
            best_E[here] = logits_NV.argmax(-1)[place] == target
        return value_E.tolist(), best_E.tolist()

    def _passes(self, rows: list[Row]) -> Iterator[tuple[list[Row], Tensor]]:
        """Rows and the states (N, C) at their scored places, row after row."""
        groups = families(rows) if self.share else [Family(0, [row]) for row in rows]
        alone = sorted((row for group in groups if not group.shared for row in group.rows), key=_length, reverse=True)
        kin = sorted((group for group in groups if group.shared), key=lambda group: group.shared, reverse=True)
        total = sum(len(row.tokens) for row in alone)
        total += sum(group.shared + sum(len(row.tokens) - group.shared for row in group.rows) for group in kin)
        began = told = time.monotonic()
        done = 0
        for batch, states, read in self._all(alone, kin):
            yield batch, states
            done += read
            now = time.monotonic()
            if self.say and now - told > SECONDS:
                told = now
                left = (now - began) / done * (total - done)
                print(f"read {done:,} of {total:,} tokens, {left:.0f} s left", file=sys.stderr, flush=True)

    def _all(self, alone: list[Row], kin: list[Family]) -> Iterator[tuple[list[Row], Tensor, int]]:
        start = 0
        while start < len(alone):
            size = max(1, self.batch_tokens // len(alone[start].tokens))
            batch = alone[start : start + size]
            yield batch, self._whole(batch), sum(map(_length, batch))
            start += size
        for group in self._batches(kin):
            shared = sum(family.shared for family in group)
            cache, size = self._read_shared(group)
            pieces = [(index, family.shared, row) for index, family in enumerate(group) for row in family.rows]
            pieces.sort(key=lambda piece: len(piece[2].tokens) - piece[1], reverse=True)
            start = 0
            while start < len(pieces):
                longest = len(pieces[start][2].tokens) - pieces[start][1]
                count = max(1, min(self.batch_tokens // longest, CACHED * self.batch_tokens // size))
                some = pieces[start : start + count]
                read = sum(len(row.tokens) - before for _, before, row in some) + shared
                yield [row for _, _, row in some], self._rest(cache, some), read
                start, shared = start + count, 0

    def _batches(self, kin: list[Family]) -> Iterator[list[Family]]:
        """Families side by side: as many as fit a pass, and no row beyond the context."""
        batch: list[Family] = []
        for family in kin:
            longest = max(len(row.tokens) - one.shared for one in (*batch, family) for row in one.rows)
            first = batch[0].shared if batch else family.shared
            filled = first * (len(batch) + 1) > self.batch_tokens or first + longest > self.limit
            if batch and filled:
                yield batch
                batch = []
            batch.append(family)
        if batch:
            yield batch

    def _whole(self, batch: list[Row]) -> Tensor:
        """States (N, C) of rows read from their first token on."""
        longest = len(batch[0].tokens)
        ids_BT = torch.tensor([[*row.tokens, *[0] * (longest - len(row.tokens))] for row in batch], device=self.device)
        return self._scored(self.net.hidden(ids_BT), [len(row.tokens) for row in batch], batch)

    def _read_shared(self, group: list[Family]) -> tuple[KVCache, int]:
        """Keys and values of what each family shares, and the positions that the cache has room for."""
        longest = max(len(row.tokens) - family.shared for family in group for row in family.rows)
        size = max(family.shared for family in group) + longest
        cache = KVCache(self.net.config, len(group), size, self.dtype, self.device)
        prefill(self.net, [family.rows[0].tokens[: family.shared] for family in group], cache)
        return cache, size

    def _rest(self, cache: KVCache, some: list[tuple[int, int, Row]]) -> Tensor:
        """States (N, C) of rows behind what is in the cache.

        Args:
            cache: of the shared beginnings; it stays as it is.
            some: (family's row in the cache, tokens shared, row), the longest rest first.
        """
        own = copy.copy(cache)
        own.select(torch.tensor([index for index, _, _ in some], device=self.device))
        rests = [row.tokens[before:] for _, before, row in some]
        longest = len(rests[0])
        ids_BT = torch.tensor([[*rest, *[0] * (longest - len(rest))] for rest in rests], device=self.device)
        begin_B = torch.tensor([before for _, before, _ in some], device=self.device)
        lengths = [len(rest) for rest in rests]
        own.ends = begin_B + torch.tensor(lengths, device=self.device)
        positions_BT = begin_B[:, None] + torch.arange(longest, device=self.device)
        return self._scored(self.net.hidden(ids_BT, positions_BT, own), lengths, [row for _, _, row in some])

    def _scored(self, hidden_BTC: Tensor, lengths: list[int], batch: list[Row]) -> Tensor:
        """States (N, C) at the scored places: the last ones before each row's end."""
        T = hidden_BTC.shape[1]
        places = [
            index * T + place
            for index, (length, row) in enumerate(zip(lengths, batch))
            for place in range(length - row.scored, length)
        ]
        return hidden_BTC.flatten(0, 1)[torch.tensor(places, device=self.device)]

    def rolling(self, texts: Sequence[list[int]], prefix: int) -> list[float]:
        """log p of whole texts, each token seen with as much context as fits: windows of the network's context, the
        first behind `prefix`, each later one behind the token before it, the last with all the context it can have."""
        requests, owners = [], []
        for number, ids in enumerate(texts):
            for start in range(0, len(ids), self.limit):
                end = min(start + self.limit, len(ids))
                before = [prefix] if start == 0 else ids[end - self.limit - 1 : start]
                requests.append((before, ids[start:end]))
                owners.append(number)
        totals = [0.0] * len(texts)
        for owner, (value, _) in zip(owners, self.continuations(requests)):
            totals[owner] += value
        return totals


def _length(row: Row) -> int:
    return len(row.tokens)
