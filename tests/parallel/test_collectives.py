"""What 64 ranks exchange in a step and hold between steps, counted by one process in a group that only pretends."""

from contextlib import nullcontext

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.parallel.apply import spread
from lightning_gpt.parallel.strategies import gradients_unsynced, lay_out

KINDS = ("allgather", "reducescatter", "allreduce")
LAYOUTS = {"sharded": (1, 64, 1), "copies": (8, 8, 1), "tensor": (1, 1, 8), "2-D": (1, 8, 8)}
"""Copies, shards, tensor-parallel ranks."""
LAYERS = 4
SHAPE = {"vocab_size": 512, "block_size": 16, "n_layer": LAYERS, "n_head": 8, "n_embd": 64, "tie_embeddings": False}
SHAPE |= {"norm": "rmsnorm", "bias": False, "position": "rotary", "feed_forward": "swiglu"}


def built(replicas: int, shards: int, tensor: int) -> GPT:
    net = GPT(GPTConfig(**SHAPE))
    spread(net, lay_out("cpu", replicas, shards, tensor), sharded=replicas * shards > 1)
    return net


def exchanged(net: GPT, micro_batches: int = 1, sync: bool = False) -> dict[str, int]:
    """Collectives of one optimizer step, forward and backward passes of so many micro-batches."""
    ids = torch.zeros(1, 16, dtype=torch.int64)
    with CommDebugMode() as counted:
        for left in reversed(range(micro_batches)):
            with gradients_unsynced(net) if left and not sync else nullcontext():
                net.loss(ids, ids)[0].backward()
    counts = dict.fromkeys(KINDS, 0)
    for operation, number in counted.get_comm_counts().items():
        (kind,) = [kind for kind in KINDS if kind in str(operation).replace("_", "")]
        counts[kind] += number
    return counts


def local_bytes(net: GPT) -> int:
    return sum(p.to_local().numel() * 4 if isinstance(p, DTensor) else p.numel() * 4 for p in net.parameters())


def measured(names: list[str]) -> dict[str, tuple]:
    """By layout: collectives of a step, of four micro-batches, of four that are all reduced, and bytes of weights."""
    found = {}
    for name in names:
        mesh = LAYOUTS[name]
        store, ranks = FakeStore(), mesh[0] * mesh[1] * mesh[2]
        torch.distributed.init_process_group("fake", rank=0, world_size=ranks, store=store)
        net = built(*mesh)
        found[name] = exchanged(net), exchanged(net, 4), exchanged(net, 4, sync=True), local_bytes(net)
        torch.distributed.destroy_process_group()
    return found


def counts(gathers: int, scatters: int, sums: int) -> dict[str, int]:
    return {"allgather": gathers, "reducescatter": scatters, "allreduce": sums}


def test_what_is_exchanged_and_held(processes):
    (outcome,) = processes(1, lambda rank: measured(list(LAYOUTS)))
    found, whole = outcome.value, local_bytes(GPT(GPTConfig(**SHAPE)))
    groups = LAYERS + 1  # blocks, and what is beside them
    gathers = groups + LAYERS  # blocks are gathered again in the backward pass
    # A block sums after attention and feed-forward, forth and back; beside them the embedding, two sums and one back of
    # the loss.
    sums = 4 * LAYERS + 4
    one, four, synced, held = found["sharded"]
    assert one == counts(gathers, groups, 0)
    assert four == counts(4 * gathers, groups, 0)
    assert synced == counts(4 * gathers, 4 * groups, 0)
    assert held == whole / 64
    one, four, _, held = found["copies"]
    assert one == counts(gathers, groups, groups)
    assert four == counts(4 * gathers, groups, groups)
    assert held == whole / 8
    one, four, _, held = found["tensor"]
    assert one == counts(0, 0, sums)
    norms = (2 * LAYERS + 1) * SHAPE["n_embd"] * 4
    assert held == (whole - norms) / 8 + norms
    one, four, _, held = found["2-D"]
    assert one == counts(gathers, groups, sums)
    assert four == counts(4 * gathers, groups, 4 * sums)
    assert held == ((whole - norms) / 8 + norms) / 8
