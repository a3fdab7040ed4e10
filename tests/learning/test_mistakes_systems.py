"""Planted mistakes in exercises of 08, 10, 11 and 13."""

import pytest
import torch
from judged import judged, mistake, named
from torch.nn import functional as F

from lightning_gpt.learning import chapter_08 as eight
from lightning_gpt.learning import chapter_11 as eleven
from lightning_gpt.learning import chapter_13 as thirteen
from lightning_gpt.objectives.contrastive import info_nce
from lightning_gpt.serving.token_bucket import TokenBucket

pytestmark = pytest.mark.slow


def no_messages(lists, ring):
    return [[sum(column) for column in zip(*lists)]] * len(lists)


def round_and_round(lists, ring):
    p, sums = len(lists), [list(one) for one in lists]
    moving = [list(one) for one in lists]
    for _ in range(p - 1):
        for rank in range(p):
            ring.send(rank, moving[rank])
        moving = [ring.receive(rank) for rank in range(p)]
        sums = [[a + b for a, b in zip(one, came)] for one, came in zip(sums, moving)]
    return sums


def half_way(lists, ring):
    eight.solve_ring(lists, ring)
    return lists


def waits(lists, ring):
    return [ring.receive(0)]


def plain_mean(gradients, targets):
    return [torch.stack(parts).nanmean(0) for parts in zip(*gradients)]


def nan_kept(gradients, targets):
    total = sum(targets)
    return [sum(part * count / total for part, count in zip(parts, targets)) for parts in zip(*gradients)]


class FillsTwice(TokenBucket):
    @property
    def level(self):
        now = self.clock()
        self._level = min(self._level + abs(now - self._at) * self.rate_per_s, self.burst)
        self._at = now
        return self._level


class NoCap(TokenBucket):
    @property
    def level(self):
        now = self.clock()
        self._level += max(now - self._at, 0) * self.rate_per_s
        self._at = max(now, self._at)
        return self._level


class TakesAnyway(TokenBucket):
    def take(self, n):
        wait = self.wait_s(n)
        self._level -= n
        return wait


class SaysTwice(TokenBucket):
    def take(self, n):
        return 2 * super().take(n)


def one_way(images, texts, scale):
    return F.cross_entropy(scale * images @ texts.T, torch.arange(len(images)))


def no_scale(images, texts, scale):
    return info_nce(images, texts, 1.0)


def stops_the_gradient(images, texts, scale):
    return info_nce(images.detach(), texts, scale) + 0 * images.sum()


def first_few(embedded, ids, image_token, features):
    return embedded.masked_scatter((ids == image_token)[..., None], features)


def spoils(embedded, ids, image_token, features):
    if int((ids == image_token).sum()) != len(features) * features.shape[1]:
        raise ValueError
    embedded[ids == image_token] = features.flatten(0, 1)
    return embedded


def texts_first(images, texts, k):
    return eleven.solve_recall(texts, images, k)


def swapped(chosen, rejected, reference_chosen, reference_rejected, beta):
    return thirteen.solve_dpo(rejected, chosen, reference_chosen, reference_rejected, beta)


def no_reference(chosen, rejected, reference_chosen, reference_rejected, beta):
    return -F.logsigmoid(beta * (chosen - rejected))


def overflows(chosen, rejected, reference_chosen, reference_rejected, beta):
    return -(torch.sigmoid(beta * (chosen - rejected - reference_chosen + reference_rejected))).log()


def leaks(rewards, values, mask, gamma, lam):
    return thirteen.solve_gae(rewards, values, torch.ones_like(mask), gamma, lam) * mask


def one_step(rewards, values, mask, gamma, lam):
    return thirteen.solve_gae(rewards, values, mask, gamma, 0.0)


def not_masked(rewards, values, mask, gamma, lam):
    return thirteen.solve_gae(rewards, values, mask, gamma, lam) + ~mask


def population(scores):
    return (scores - scores.mean(-1, keepdim=True)) / (scores.std(-1, keepdim=True, correction=0) + 1e-4)


def divides_by_zero(scores):
    return (scores - scores.mean(-1, keepdim=True)) / scores.std(-1, keepdim=True)


MISTAKES = [
    ("08", "least", {"fsdp_bytes": 112e9}, "fsdp_bytes: 1.12e+11 is too large, by a factor of 8"),
    ("08", "ring", {"ring_all_reduce": no_messages}, "a rank looked at another's list"),
    ("08", "ring", {"ring_all_reduce": round_and_round}, "numbers, 12 are allowed"),
    ("08", "ring", {"ring_all_reduce": half_way}, "does not have the sums"),
    ("08", "ring", {"ring_all_reduce": waits}, "waits for ever"),
    ("08", "average", {"average_gradients": plain_mean}, "targets [7, 1]: differs"),
    ("08", "average", {"average_gradients": nan_kept}, "NaN or infinite"),
    ("10", "replicas", {"spare": 0}, "spare: 0 is wrong"),
    ("10", "replicas", {"replicas": 7}, "replicas: 7 is too small"),
    ("10", "bucket", {"TokenBucket": FillsTwice}, "request "),
    ("10", "bucket", {"TokenBucket": NoCap}, "granted, which is wrong"),
    ("10", "bucket", {"TokenBucket": TakesAnyway}, "rate 2, burst 4"),
    ("10", "bucket", {"TokenBucket": SaysTwice}, "the wait: "),
    ("11", "info_nce", {"info_nce": one_way}, "info_nce, N=2"),
    ("11", "info_nce", {"info_nce": no_scale}, "info_nce, N=8"),
    ("11", "info_nce", {"info_nce": stops_the_gradient}, "the gradient, N="),
    ("11", "splice", {"splice": first_few}, "are not refused: raise a ValueError"),
    ("11", "splice", {"splice": spoils}, "embedded was changed in place"),
    ("11", "recall", {"recall_at": texts_first}, "recall at"),
    ("13", "dpo", {"dpo_loss": swapped}, "dpo_loss, B=1"),
    ("13", "dpo", {"dpo_loss": no_reference}, "dpo_loss, B=1"),
    ("13", "dpo", {"dpo_loss": overflows}, "NaN or infinite"),
    ("13", "gae", {"gae": leaks}, "differs from the reference"),
    ("13", "gae", {"gae": one_step}, "lambda="),
    ("13", "gae", {"gae": not_masked}, "behind an answer's end are not 0"),
    ("13", "reward", {"reward_loss": lambda c, r, centering: -torch.sigmoid(c - r).log()}, "centering 0.01: differs"),
    ("13", "reward", {"group_advantages": population}, "group_advantages, N="),
    ("13", "reward", {"group_advantages": divides_by_zero}, "NaN or infinite"),
]


@pytest.mark.parametrize("number, name, parts, message", MISTAKES, ids=lambda one: one if isinstance(one, str) else "")
def test_a_mistake_is_named(number, name, parts, message):
    assert message in mistake(number, name, parts)


def test_a_bucket_as_one_writes_it():
    class Bucket:
        def __init__(self, rate, burst, clock):
            self.rate, self.burst, self.clock, self.level, self.at = rate, burst, clock, burst, clock()

        def take(self, n):
            now = max(self.clock(), self.at)
            self.level = min(self.burst, self.level + (now - self.at) * self.rate)
            self.at = now
            if self.level >= n - 1e-9 * self.burst:
                self.level -= n
                return 0.0
            return (n - self.level) / self.rate

    assert judged(named("10", "bucket"), {"TokenBucket": Bucket}) is None
