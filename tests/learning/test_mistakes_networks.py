"""Planted mistakes in exercises of 06, 07, 09 and 12."""

import pytest
import torch
from judged import judged, mistake, named
from torch.nn import functional as F

from lightning_gpt.learning import chapter_09 as nine
from lightning_gpt.learning import chapter_12 as twelve
from lightning_gpt.learning.chapter_05 import reference_attention
from lightning_gpt.learning.chapter_06 import solve_fit, solve_optimum
from lightning_gpt.learning.chapter_07 import reference_rotate, solve_parts

pytestmark = pytest.mark.slow


def wrong_constants(parameters, tokens, losses):
    E, A, B, alpha, beta = solve_fit(parameters, tokens, losses)
    return E * 1.02, A, B, alpha, beta


def follows_outliers(parameters, tokens, losses):
    found = solve_fit(parameters, tokens, losses)
    return (found[0] * (1 + 0.05 * (max(losses) > 1.2 * sorted(losses)[-2] or losses[13] > losses[12])), *found[1:])


def twenty_a_parameter(flops, *law):
    return (flops / 120) ** 0.5, 20 * (flops / 120) ** 0.5


def swapped(flops, *law):
    return solve_optimum(flops, *law)[::-1]


def rounded_exponent(x, y):
    import numpy as np

    slope, level = np.polyfit(np.log(x), np.log(y), 1)
    return float(np.exp(level)), round(float(slope), 2)


def interleaved(x, positions, theta=10000.0):
    order = torch.arange(x.shape[-1]).view(-1, 2).T.flatten()
    return reference_rotate(x[..., order], positions, theta)


def other_way(x, positions, theta=10000.0):
    return reference_rotate(x.flip(-1), positions, theta).flip(-1)


def added(x, positions, theta=10000.0):
    return x + positions[:, None].float().sin()


def whole_scores(q, k, v, block):
    return reference_attention(q, k, v)


def no_rescaling(q, k, v, block):
    y = reference_attention(q, k, v)
    return y + (q.shape[2] > block) * 0.01


def norm_with_mean(x, weight, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], weight, None, eps)


def gate_swapped(x, gate, up, down):
    return solve_parts()["swiglu"](x, up, gate, down)


def tiled(x, heads):
    return x.repeat(1, heads // x.shape[1], 1, 1)


def keeps_all(p, q, draft, accept, draw):
    kept, following = nine.solve_verify(p, q, draft, accept * 0, draw)
    return kept, following


def from_p_again(p, q, draft, accept, draw):
    kept, _ = nine.solve_verify(p, q, draft, accept, draw)
    return kept, int(torch.searchsorted(p[kept].cumsum(0), draw[kept], right=True))


class Forgets(nine.SolvedCache):
    def __call__(self, q, k, v):
        return reference_attention(q, k, v)


class NoMask(nine.SolvedCache):
    def __call__(self, q, k, v):
        if self.cache is None:
            self.cache = (k[:, :, :0], v[:, :, :0])
        self.cache = torch.cat((self.cache[0], k), 2), torch.cat((self.cache[1], v), 2)
        return F.scaled_dot_product_attention(q, *self.cache)


def one_scale(weight):
    scale = weight.abs().max() / 127
    return (weight / scale).round().to(torch.int8), scale.expand(len(weight))


def cuts_off(weight):
    scale = (weight.abs().amax(1) / 127).clamp(min=1e-9)
    return (weight / scale[:, None]).to(torch.int8), scale


def gradient_of_counts(scores, chosen):
    E = scores.shape[1]
    soft = scores.gather(1, chosen)
    f = torch.zeros(E).index_add(0, chosen.flatten(), soft.flatten())
    return E * (f / f.sum() * scores.mean(0)).sum()


def detached(scores, chosen):
    return twelve.solve_balance(scores, chosen).detach()


def not_divided(x, router, up, down, k):
    gates = (x @ router.T).softmax(-1).topk(k).values.sum(-1, keepdim=True)
    return twelve.solve_mixture(x, router, up, down, k) * gates


def first_only(x, router, up, down, k):
    return twelve.solve_mixture(x, router, up, down, 1)


def by_token(logits, k, capacity):
    gates, chosen = logits.softmax(-1).topk(k)
    room = [capacity] * logits.shape[1]
    for token in range(len(logits)):
        for place in range(k):
            expert = int(chosen[token, place])
            gates[token, place] *= room[expert] > 0
            room[expert] -= 1
    return chosen, gates


MISTAKES = [
    ("06", "budget", {"flops": 2.588e20 / 0.4}, "flops: 6.47e+20 is too large"),
    ("06", "budget", {"tokens": "?"}, "'?' is no number"),
    ("06", "fit", {"fit": wrong_constants}, "without noise the loss at"),
    ("06", "fit", {"fit": follows_outliers}, "the loss at"),
    ("06", "fit", {"fit": lambda *runs: None}, "five numbers are wanted"),
    ("06", "optimum", {"optimum": twenty_a_parameter}, "FLOPs"),
    ("06", "optimum", {"optimum": swapped}, "N for 1e+18 FLOPs"),
    ("06", "power_law", {"power_law": rounded_exponent}, "exponent, noise 0.02"),
    ("07", "cache", {"mistral_7b_token": 524288}, "mistral_7b_token: 524288 is too large, by a factor of 4"),
    ("07", "alibi", {"distances": [2560, 640, 160, 40]}, "distance of head 0"),
    ("07", "rotate", {"rotate": interleaved}, "rotate, D=8"),
    ("07", "rotate", {"rotate": other_way}, "rotate, D="),
    ("07", "rotate", {"rotate": added}, "do not depend on distance alone"),
    ("07", "blocked", {"blocked_attention": whole_scores}, "96 x 96 is never needed"),
    ("07", "blocked", {"blocked_attention": no_rescaling}, "T=8, block=4: differs"),
    ("07", "parts", {"rms_norm": norm_with_mean}, "rms_norm of (4,)"),
    ("07", "parts", {"swiglu": gate_swapped}, "swiglu: differs"),
    ("07", "parts", {"repeat_heads": tiled}, "repeat_heads from 2 to 6"),
    ("09", "bytes", {"int8": 11520}, "int8: 11520 is too small"),
    ("09", "drafts", {"kept_at_1": 0.9}, "kept_at_0 should be the larger"),
    ("09", "drafts", {"kept_at_0": 0, "kept_at_1": 0}, "kept_at_0: no draft was kept"),
    ("09", "verify", {"verify": keeps_all}, "drafted tokens are kept, which is not right"),
    ("09", "verify", {"verify": from_p_again}, "behind a refused token is not right"),
    ("09", "cache", {"CachedAttention": Forgets}, "of pieces (1, 1, 1, 1): differs"),
    ("09", "cache", {"CachedAttention": NoMask}, "of pieces (4,): differs"),
    ("09", "int8", {"quantize": one_scale}, "row 0: a scale of"),
    ("09", "int8", {"quantize": cuts_off}, "round to the nearest"),
    ("09", "int8", {"dequantize": lambda whole, scale: whole * scale[:, None] / 127}, "dequantize: differs"),
    ("09", "int8", {"quantize": lambda weight: (weight, weight[:, 0])}, "torch.float32"),
    ("12", "active", {"glam_share": 0.5}, "glam_share"),
    ("12", "dropped", {"uneven_at_1": 0.25}, "uneven_at_1: 0.25 is too small"),
    ("12", "balance", {"balance_loss": gradient_of_counts}, "differs from the reference"),
    ("12", "balance", {"balance_loss": detached}, "no gradient reaches the scores"),
    ("12", "balance", {"balance_loss": lambda s, c: twelve.solve_balance(s, c) / s.shape[1]}, "balance_loss, N=12"),
    ("12", "mixture", {"mixture": not_divided}, "mixture, N=6"),
    ("12", "mixture", {"mixture": first_only}, "mixture, N=6"),
    ("12", "route", {"route": by_token}, "gates, N=16, E=4, top_k=2, capacity=6"),
]


@pytest.mark.parametrize("number, name, parts, message", MISTAKES, ids=lambda one: one if isinstance(one, str) else "")
def test_a_mistake_is_named(number, name, parts, message):
    assert message in mistake(number, name, parts)


def test_flash_attention_as_one_writes_it():
    def attend(q, k, v, block):
        T, D = q.shape[-2:]
        largest = torch.full((*q.shape[:-1], 1), -torch.inf)
        total, weighted = torch.zeros_like(largest), torch.zeros_like(q)
        for start in range(0, T, block):
            s = q @ k[:, :, start : start + block].transpose(-2, -1) / D**0.5
            later = torch.arange(start, start + s.shape[-1]) > torch.arange(T)[:, None]
            s = s.masked_fill(later, -torch.inf)
            new = torch.maximum(largest, s.amax(-1, keepdim=True))
            e, shrink = (s - new).exp(), (largest - new).exp()
            total, weighted = (
                total * shrink + e.sum(-1, keepdim=True),
                weighted * shrink + e @ v[:, :, start:][:, :, :block],
            )
            largest = new
        return weighted / total

    assert judged(named("07", "blocked"), {"blocked_attention": attend}) is None


def test_int8_and_a_mixture_as_one_writes_them():
    def quantize(weight):
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        return (weight / scale[:, None]).round().to(torch.int8), scale

    def mixture(x, router, up, down, top_k):
        gates, chosen = (x @ router.T).softmax(-1).topk(top_k)
        gates, y = gates / gates.sum(-1, keepdim=True), torch.zeros_like(x)
        for e in range(len(up)):
            token, place = (chosen == e).nonzero(as_tuple=True)
            y.index_add_(0, token, gates[token, place, None] * (F.relu(x[token] @ up[e].T) @ down[e].T))
        return y

    parts = {"quantize": quantize, "dequantize": lambda whole, scale: whole * scale[:, None]}
    assert judged(named("09", "int8"), parts) is None
    assert judged(named("12", "mixture"), {"mixture": mixture}) is None
