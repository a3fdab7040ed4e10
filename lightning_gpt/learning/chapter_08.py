"""Exercises of 08, distributed training."""

from __future__ import annotations

from typing import Any

from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.judging import close, function, number, same
from lightning_gpt.learning.runs import at_least, has, last, opened


def check_two_equal_one(answer: dict) -> None:
    """One process and two, the same batch in all."""
    one, two = opened(answer, "one"), opened(answer, "two")
    has(one, trainer__devices=1, trainer__precision="32-true")
    has(two, trainer__devices=2, trainer__precision="32-true")
    whole, half = one.settings.get("data.batch_size"), two.settings.get("data.batch_size")
    if whole != 2 * half:
        raise Wrong(f"one process takes {whole} windows, each of two {half}: together they should be as many")
    for run in (one, two):
        at_least(run, 40)
    close("train/loss of the two processes", last(two, "train/loss"), last(one, "train/loss"), 2e-4)


def check_volume(answer: dict) -> str:
    """What DDP sends, written down first."""
    run = opened(answer)
    said, measured = number("mib", answer.get("mib")), last(run, "communication/mib")
    if abs(said / measured - 1) > 0.05:
        raise Wrong(f"mib: {said:.4g} is {abs(said / measured - 1):.0%} away from what the run sent")
    return f"{said / measured - 1:+.1%} from what was sent"


def check_buckets(answer: dict) -> None:
    """Runs with other buckets; which hides most."""
    given = answer.get("runs")
    if not isinstance(given, list) or len(given) < 3:
        raise Wrong("runs: a list of three or more is wanted")
    hidden = {}
    for path in given:
        run = opened({"runs": path}, "runs")
        size = run.settings.get("trainer.strategy.bucket_cap_mb")
        if size is None:
            raise Wrong(f"{run.directory} was not given --trainer.strategy.bucket_cap_mb")
        hidden[float(size)] = last(run, "speed/communication_hidden")
    if len(hidden) < 3:
        raise Wrong(f"only {len(hidden)} different buckets are among them")
    close("hides_most", answer.get("hides_most"), max(hidden, key=hidden.__getitem__), 1e-6)


def check_least(answer: dict) -> None:
    """Weights, gradients and two moments in float32."""
    close("ddp_bytes", answer.get("ddp_bytes"), 7e9 * 16, 0.02)
    close("fsdp_bytes", answer.get("fsdp_bytes"), 7e9 * 16 / 8, 0.02)


RING_STUB = '''
def ring_all_reduce(lists, ring):
    """Afterwards every rank has the sums: reduce-scatter, then all-gather, around a ring.

    This function plays all ranks. A rank may use only its own list and what the ring brought it:
    ring.send(rank, numbers) sends a list to the next rank (the last one's next is 0), ring.receive(rank) takes the
    oldest list that the rank before has sent.

    Args:
        lists: one list of n numbers a rank; p ranks, any n.

    Returns:
        one list of n sums a rank. No rank may send more than 2 (p - 1) ceil(n / p) numbers.
    """
    raise NotImplementedError


class Ring:
    """For the self-test."""

    def __init__(self, p):
        self.p, self.waiting, self.sent = p, [[] for _ in range(p)], [0] * p

    def send(self, rank, numbers):
        self.waiting[(rank + 1) % self.p].append(list(numbers))
        self.sent[rank] += len(numbers)

    def receive(self, rank):
        return self.waiting[rank].pop(0)


if __name__ == "__main__":
    ring = Ring(2)
    print(ring_all_reduce([[1, 2, 3], [10, 20, 30]], ring), ring.sent)
'''


class Ring:
    """Brings lists to the next rank and counts numbers."""

    def __init__(self, ranks: int) -> None:
        self.waiting: list[list[list[float]]] = [[] for _ in range(ranks)]
        self.sent = [0] * ranks

    def send(self, rank: int, numbers: list[float]) -> None:
        """To the next rank."""
        self.waiting[(rank + 1) % len(self.sent)].append(list(numbers))
        self.sent[rank] += len(numbers)

    def receive(self, rank: int) -> list[float]:
        """From the rank before."""
        if not self.waiting[rank]:
            raise Wrong(f"rank {rank} waits for ever: nothing has been sent to it")
        return self.waiting[rank].pop(0)


def solve_ring(lists: list[list[float]], ring: Any) -> list[list[float]]:
    """Chunks of ceil(n / p); chunk c starts at rank c."""
    p, n = len(lists), len(lists[0])
    size = -(-n // p)
    own = [[list(numbers[c * size : (c + 1) * size]) for c in range(p)] for numbers in lists]
    for step in range(p - 1):
        for rank in range(p):
            ring.send(rank, own[rank][(rank - step) % p])
        for rank in range(p):
            chunk = (rank - step - 1) % p
            own[rank][chunk] = [a + b for a, b in zip(own[rank][chunk], ring.receive(rank))]
    for step in range(p - 1):
        for rank in range(p):
            ring.send(rank, own[rank][(rank + 1 - step) % p])
        for rank in range(p):
            own[rank][(rank - step) % p] = ring.receive(rank)
    return [[one for chunk in chunks for one in chunk] for chunks in own]


def check_ring(answer: Any) -> None:
    """Any p, any length; what went over the wire."""
    import random

    reduce, draw = function(answer, "ring_all_reduce"), random.Random(0)
    for p, n in ((2, 4), (4, 8), (3, 7), (5, 3), (1, 4), (4, 1), (6, 100)):
        lists = [[draw.randint(-50, 50) for _ in range(n)] for _ in range(p)]
        ring = Ring(p)
        found = reduce([list(one) for one in lists], ring)
        sums, where = [sum(column) for column in zip(*lists)], f"p={p}, n={n}"
        if not isinstance(found, list | tuple) or len(found) != p:
            raise Wrong(f"{where}: one list a rank is wanted")
        for rank, mine in enumerate(found):
            if list(mine) != sums:
                raise Wrong(f"{where}: rank {rank} does not have the sums")
        most = 2 * (p - 1) * -(-n // p)
        if max(ring.sent) > most:
            raise Wrong(f"{where}: a rank sent {max(ring.sent)} numbers, {most} are allowed")
        if p > 1 and sum(ring.sent) < 2 * (p - 1) * n:
            raise Wrong(f"{where}: only {sum(ring.sent)} numbers went over the ring: a rank looked at another's list")


AVERAGE_STUB = '''
import torch


def average_gradients(gradients, targets):
    """What every rank should step with: the gradient of the mean loss over the targets of all ranks.

    Args:
        gradients: for each rank its list of tensors: gradients of the mean loss over its own targets.
        targets: how many targets each rank had; some may have none (their gradients may then be NaN).

    Returns:
        one list of tensors.
    """
    raise NotImplementedError


if __name__ == "__main__":
    print(average_gradients([[torch.tensor([1.0])], [torch.tensor([4.0])]], [2, 1]), "wanted 2")
'''


def solve_average(gradients: list, targets: list[int]) -> list:
    """Weighted by targets."""
    total = sum(targets)
    used = [(one, count / total) for one, count in zip(gradients, targets) if count]
    return [
        sum(part * share for part, share in zip(parts, (s for _, s in used))) for parts in zip(*(g for g, _ in used))
    ]


def check_average(answer: Any) -> None:
    """Equal numbers of targets, unequal ones, a rank without any."""
    import torch
    from torch.nn import functional as F

    average = function(answer, "average_gradients")
    for counts in ([4, 4], [7, 1], [3, 0, 5], [1, 2, 3, 4]):
        weight = torch.randn(6, 3, requires_grad=True)
        bias = torch.randn(6, requires_grad=True)
        ranks = [(torch.randn(8, 3), torch.randint(6, (8,))) for _ in counts]
        for (_, targets), count in zip(ranks, counts):
            targets[count:] = -100
        gradients = [
            list(torch.autograd.grad(F.cross_entropy(x @ weight.T + bias, y), (weight, bias))) for x, y in ranks
        ]
        for parts, count in zip(gradients, counts):
            if not count:
                parts[:] = [torch.full_like(part, torch.nan) for part in parts]
        x, y = (torch.cat(part) for part in zip(*ranks))
        wanted = torch.autograd.grad(F.cross_entropy(x @ weight.T + bias, y), (weight, bias))
        found = average(gradients, list(counts))
        if not isinstance(found, list | tuple) or len(found) != 2:
            raise Wrong("average_gradients: a list of as many tensors as one rank has is wanted")
        for name, a, b in zip(("the first gradient", "the second"), found, wanted):
            same(f"{name}, targets {counts}", a, b, 1e-6)


EXERCISES = (
    Exercise(
        1,
        "Two equal one",
        "run",
        "40 steps or more in one process, and in two with half the batch each, in 32-true: the same losses.",
        "one:   # run\ntwo:   # run",
        check_two_equal_one,
        (
            "-c configs/trainer/ddp.yaml --trainer.accelerator cpu --trainer.devices 2.",
            "data.batch_size counts windows of one process.",
        ),
        "two_equal_one",
    ),
    Exercise(
        1,
        "Count the bytes first",
        "run",
        "How many MiB does a step of DDP give to its collectives? Write it down, then let CollectiveVolume look.",
        "mib:   # of one step\nrun:   # with --trainer.callbacks+=lightning_gpt.callbacks.CollectiveVolume",
        check_volume,
        ("Every parameter has one gradient.", "Four bytes each in float32; 2^20 bytes are a MiB."),
        "volume",
    ),
    Exercise(
        2,
        "Find the bucket",
        "run",
        "Runs with three or more values of --trainer.strategy.bucket_cap_mb and the callback CommunicationShare: with "
        "which is the largest share of communication hidden?",
        "runs: []       # three or more\nhides_most:    # bucket_cap_mb",
        check_buckets,
        ("The share is speed/communication_hidden in metrics.jsonl.", "The last logged value counts."),
        "buckets",
    ),
    Exercise(
        2,
        "Plan before you rent",
        "measure",
        "7 G parameters, AdamW, all in float32, 8 devices: the least bytes of weights, gradients and moments a device, "
        "under DDP and under FSDP.",
        "ddp_bytes:\nfsdp_bytes:",
        check_least,
        ("Weights, gradients and two moments: four numbers a parameter.", "FSDP cuts all four into 8 parts."),
        "least",
        lambda: "ddp_bytes: 112e+9\nfsdp_bytes: 14e+9\n",
    ),
    Exercise(
        3,
        "A ring",
        "component",
        "All-reduce as NCCL and gloo do it: right for any number of ranks and any length, and no rank sends more than "
        "2 (p - 1) / p of the data, rounded up to chunks.",
        RING_STUB,
        check_ring,
        (
            "Cut each list into p chunks of ceil(n / p) (the last may be shorter, or empty).",
            "p - 1 times: rank r sends chunk (r - step) mod p and adds what comes to the chunk before it.",
            "Then rank r has chunk (r + 1) mod p complete; p - 1 times pass complete chunks on and store them.",
        ),
        "ring",
        lambda: {"ring_all_reduce": solve_ring},
    ),
    Exercise(
        2,
        "An average that is right",
        "component",
        "The mean of the ranks' gradients is the gradient of the mean only where ranks have as many targets.",
        AVERAGE_STUB,
        check_average,
        ("Weigh each rank by its share of all targets.", "0 x NaN is NaN: leave out ranks without targets."),
        "average",
        lambda: {"average_gradients": solve_average},
    ),
)
