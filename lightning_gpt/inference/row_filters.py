"""Temperature, top-k, top-p and min-p for rows with different settings, and draws from what they leave.

Legend: B rows, V vocabulary, G groups of W ids (vocabulary_groups.py), R uniform numbers.

Every filter keeps what is at least as likely as some threshold. A row is drawn from in the order of the ids: the token
where the running sum of the weights passes a uniform number. Top-p needs no sorting for that: a token is drawn from
all, and lies inside the nucleus exactly if what is likelier than it weighs less than p; if it does not, it is drawn
again from the likelier ones, with the next uniform number. So a flat distribution costs as little as a peaked one, and
the first draw is kept with a probability of at least p.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.inference.vocabulary_groups import (
    W,
    group_maxima,
    group_sums,
    groups_of,
    invert,
    members,
    top_values,
)

POOLED_K = 128
"""Up to this top_k only the groups that can hold the k largest logits are looked at."""
SORTED_FIRST = 256
"""How many of the likeliest tokens are sorted before all are."""
COLDEST = 1e-6
"""Temperatures below would divide by zero in float32; the draw is as good as greedy long before."""


class Scratch:
    """Room for two large tensors that is kept from step to step: fresh pages cost as much as the arithmetic on them."""

    def __init__(self) -> None:
        self._rooms = [torch.empty(0), torch.empty(0)]

    def take(self, which: int, rows: int, columns: int, device: torch.device) -> Tensor:
        """(rows, columns) float32 of any content, valid until the same room is taken again."""
        if self._rooms[which].numel() < rows * columns or self._rooms[which].device != device:
            self._rooms[which] = torch.empty(rows * columns, dtype=torch.float32, device=device)
        return self._rooms[which][: rows * columns].view(rows, columns)


class NotFiniteError(ValueError):
    """Logits from which no token can be drawn.

    Args:
        rows: which.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(
            f"the logits of row {rows[0]} have no token to draw (NaN or infinite, or all forbidden): look for weights "
            "that are not finite, for float16 overflow, or for a logit_bias or banned ids that forbid every token"
        )
        self.rows = rows
        self.keys: list[int] = []
        """Of an engine's requests, where it was one that could not draw."""


@dataclass(frozen=True)
class RowFilters:
    """The settings of B rows, none of them greedy."""

    temperature_B1: Tensor
    top_k: list[int | None]
    top_p_B: Tensor
    """1 = off."""
    min_p_B: Tensor
    """0 = off."""
    warm: bool
    """Some temperature is not 1."""
    nucleus: bool
    """Some top_p is below 1."""
    floored: bool
    """Some min_p is above 0."""

    @classmethod
    def of(cls, settings: Sequence[SamplingConfig], device: torch.device) -> "RowFilters":
        """Of one configuration per row."""
        numbers = [(max(s.temperature, COLDEST), s.top_p or 1.0, s.min_p or 0.0) for s in settings]
        table = torch.tensor(numbers, dtype=torch.float32).to(device, non_blocking=True)
        return cls(
            table[:, :1],
            [s.top_k for s in settings],
            table[:, 1],
            table[:, 2],
            any(n[0] != 1 for n in numbers),
            any(n[1] < 1 for n in numbers),
            any(n[2] > 0 for n in numbers),
        )

    def __getitem__(self, rows: Tensor) -> "RowFilters":
        top_k = [self.top_k[row] for row in rows.tolist()]
        parts = self.temperature_B1[rows], top_k, self.top_p_B[rows], self.min_p_B[rows]
        return RowFilters(*parts, self.warm, self.nucleus, self.floored)


def check_finite(peak_B: Tensor, rows: Sequence[int] | None = None) -> None:
    """Raises NotFiniteError unless every row's largest logit is finite; `rows` = what the rows are called there."""
    bad = (~peak_B.isfinite()).nonzero()[:, 0].tolist()
    if bad:
        raise NotFiniteError(bad if rows is None else [rows[row] for row in bad])


def _kth_values(x_BV: Tensor, top_k: Sequence[int | None]) -> Tensor:
    """(B, 1), each row's k-th largest value, -inf without top_k."""
    most = min(max(k or 1 for k in top_k), x_BV.shape[1])
    values_BK = top_values(x_BV, most)[0]
    places = torch.tensor([[min(k or 1, most) - 1] for k in top_k], device=x_BV.device)
    off = torch.tensor([[k is None] for k in top_k], device=x_BV.device)
    return values_BK.gather(1, places).masked_fill(off, -torch.inf)


def _weigh(x_BV: Tensor, filters: RowFilters, scratch: Scratch) -> Tensor:
    """(B, G, W): exp((logit - largest) / temperature), 0 outside the top k and past the last id."""
    B, V = x_BV.shape
    below = scratch.take(0, B, groups_of(V) * W, x_BV.device)
    below[:, V:] = -torch.inf
    peak_B1 = x_BV.amax(1, keepdim=True)
    check_finite(peak_B1[:, 0])
    torch.sub(x_BV, peak_B1, out=below[:, :V])
    if any(k is not None and k < V for k in filters.top_k):
        below.masked_fill_(below < _kth_values(x_BV, filters.top_k) - peak_B1, -torch.inf)
    return _heat(below, filters)


def _heat(below_BN: Tensor, filters: RowFilters) -> Tensor:
    """exp(differences / temperature), in groups, written over the differences."""
    if filters.warm:
        below_BN.div_(filters.temperature_B1)
    return below_BN.exp_().view(len(below_BN), -1, W)


def _above(w_BGW: Tensor, threshold_B: Tensor, scratch: Scratch) -> Tensor:
    """The weights above their row's threshold, zeros elsewhere."""
    kept = scratch.take(1, len(w_BGW), w_BGW[0].numel(), w_BGW.device).view_as(w_BGW)
    if w_BGW.device.type != "cpu":
        return torch.gt(w_BGW, threshold_B[:, None, None], out=kept).mul_(w_BGW)
    for row, own in enumerate(threshold_B.tolist()):  # in one pass over each row
        torch.ops.aten.threshold.out(w_BGW[row], own, 0.0, out=kept[row])
    return kept


def _from(w_BGW: Tensor, threshold_B: Tensor, scratch: Scratch) -> Tensor:
    """The weights from their row's threshold on, zeros elsewhere."""
    return _above(w_BGW, torch.nextafter(threshold_B, threshold_B - 1), scratch)


def nucleus_threshold(w_BN: Tensor, mass_B: Tensor) -> Tensor:
    """(B, 1), the smallest weight in each row's nucleus: the likeliest of which the likelier ones weigh under mass_B.

    Exact: where the nucleus is not among the first few hundred, all are sorted.
    """
    first = min(SORTED_FIRST, w_BN.shape[1])
    descending = top_values(w_BN, first)[0]
    before = descending.double().cumsum(1) - descending
    inside = before < mass_B[:, None]
    threshold_B1 = descending.masked_fill(~inside, torch.inf).amin(1, keepdim=True)
    rows = inside[:, -1].nonzero()[:, 0]
    if first < w_BN.shape[1] and len(rows):
        descending = w_BN[rows].sort(1, descending=True).values
        before = descending.double().cumsum(1) - descending
        threshold_B1[rows] = descending.masked_fill(before >= mass_B[rows, None], torch.inf).amin(1, keepdim=True)
    return threshold_B1


def probabilities(x_BV: Tensor, filters: RowFilters) -> Tensor:
    """(B, V) float32, softmax of what the filters leave: as process_logits, for rows with different settings.

    Raises:
        NotFiniteError: a row without a finite largest logit.
    """
    w_BV = _weigh(x_BV, filters, Scratch()).flatten(1)[:, : x_BV.shape[1]]
    if filters.nucleus:
        threshold_B1 = nucleus_threshold(w_BV, filters.top_p_B * w_BV.double().sum(1))
        threshold_B1 = torch.where(filters.top_p_B[:, None] < 1, threshold_B1, 0.0)
        w_BV = w_BV.masked_fill(w_BV < threshold_B1, 0.0)
    if filters.floored:
        w_BV = w_BV.masked_fill(w_BV < filters.min_p_B[:, None], 0.0)
    return w_BV / w_BV.sum(1, keepdim=True)


def draw_rows(x_BV: Tensor, filters: RowFilters, uniforms_BR: Tensor, scratch: Scratch) -> Tensor:
    """One token per row, (B,) int64.

    Args:
        x_BV: float32 logits with bias and penalties applied.
        filters: of the rows.
        uniforms_BR: float64 in [0, 1); the first decides unless top-p rejects its token.
        scratch: written over.

    Raises:
        NotFiniteError: a row without a finite largest logit.
    """
    V = x_BV.shape[1]
    pooled = [row for row, k in enumerate(filters.top_k) if k is not None and k <= POOLED_K]
    if not pooled or (max(filters.top_k[row] for row in pooled) + 1) * W * 2 > V:
        return _draw(_weigh(x_BV, filters, scratch), filters, uniforms_BR, scratch)
    tokens_B = torch.empty(len(x_BV), dtype=torch.int64, device=x_BV.device)
    index = torch.tensor(pooled, device=x_BV.device)
    some = len(pooled) < len(x_BV)
    x, own, uniforms = (part[index] if some else part for part in (x_BV, filters, uniforms_BR))
    rest = _draw_pooled(x, own, uniforms, tokens_B, index, scratch)
    rest = sorted({*range(len(x_BV))} - {*pooled} | {*rest})
    if rest:
        index = torch.tensor(rest, device=x_BV.device)
        x, own = x_BV[index], filters[index]
        check_finite(x.amax(1), rest)
        tokens_B[index] = _draw(_weigh(x, own, scratch), own, uniforms_BR[index], scratch)
    return tokens_B


def _draw_pooled(
    x_BV: Tensor, filters: RowFilters, uniforms_BR: Tensor, tokens: Tensor, index_B: Tensor, scratch: Scratch
) -> list[int]:
    """Draws from the groups that hold the top k; writes tokens[index]; the rows that need all groups, because values
    that equal the k-th are in others too."""
    V = x_BV.shape[1]
    most = max(filters.top_k)
    maxima_BK, groups_BK = torch.topk(group_maxima(x_BV), most + 1, 1)
    check_finite(maxima_BK[:, 0], index_B.tolist())
    groups_BK = groups_BK.sort(1).values
    ids = members(groups_BK, V)
    pool = x_BV.gather(1, ids)
    if V % W:  # the last group is filled up with its last id
        past = groups_BK[:, -1:] == V // W
        pool[:, V % W - W :].masked_fill_(past, -torch.inf)
    kth_B1 = _kth_values(pool, filters.top_k)
    whole = maxima_BK[:, -1:] < kth_B1
    peak_B1 = maxima_BK[:, :1]
    below = pool.sub_(peak_B1)
    below.masked_fill_(below < kth_B1 - peak_B1, -torch.inf)
    places_B1 = _draw(_heat(below, filters), filters, uniforms_BR, scratch)[:, None]
    tokens[index_B] = ids.gather(1, places_B1)[:, 0]
    return index_B[~whole[:, 0]].tolist()


def _draw(w_BGW: Tensor, filters: RowFilters, uniforms_BR: Tensor, scratch: Scratch) -> Tensor:
    """(B,) places in the groups. Writes over the weights."""
    if filters.nucleus or not filters.floored:
        sums_BG = group_sums(w_BGW)
        mass_B = filters.top_p_B * sums_BG[:, -1]
    if filters.floored:
        w_BGW = _from(w_BGW, filters.min_p_B, scratch)
        sums_BG = group_sums(w_BGW)
        if filters.nucleus:
            w_BGW = w_BGW.clone()  # the scratch is needed again
    places_B = invert(w_BGW, sums_BG, uniforms_BR[:, 0])
    if not filters.nucleus:
        return places_B
    rows, bounded_B, current_B = torch.arange(len(places_B)).to(mass_B.device), filters.top_p_B < 1, places_B
    for uniforms_B in uniforms_BR.unbind(1)[1:]:
        drawn_B = w_BGW.flatten(1).gather(1, current_B[:, None])[:, 0]
        larger_BGW = _above(w_BGW, drawn_B, scratch)
        sums_BG = group_sums(larger_BGW)
        again = ((sums_BG[:, -1] >= mass_B[rows]) & bounded_B[rows]).nonzero()[:, 0]
        if not len(again):
            return places_B
        rows, w_BGW, sums_BG = rows[again], larger_BGW[again], sums_BG[again]
        current_B = invert(w_BGW, sums_BG, uniforms_B[rows])
        places_B[rows] = current_B
    # What the last uniform number gave is not looked at: it draws from the nucleus itself, cut out by sorting.
    w_BGW = _from(w_BGW, nucleus_threshold(w_BGW.flatten(1), mass_B[rows])[:, 0], scratch)
    places_B[rows] = invert(w_BGW, group_sums(w_BGW), uniforms_BR[rows, -1])
    return places_B
