import itertools
import threading

import numpy as np
import pytest
import torch

from lightning_gpt.data.loader import EvalLoader, TrainLoader, window_batch
from lightning_gpt.data.sampler import EpochWindows, RandomWindows
from lightning_gpt.data.shards import TokenShards

T = 8


@pytest.fixture
def ids():
    return np.random.default_rng(0).integers(0, 200, 403).astype(np.uint16)


@pytest.fixture
def shards(tmp_path, ids):
    """Two shards, documents ending at 50, 57, 300 (the end of the first) and 403."""
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    offsets = [tmp_path / "a.npy", tmp_path / "b.npy"]
    ids[:300].tofile(paths[0])
    ids[300:].tofile(paths[1])
    np.save(offsets[0], np.array([0, 50, 57, 300], np.uint64))
    np.save(offsets[1], np.array([0, 103], np.uint64))
    return TokenShards(paths, "uint16", 256, offsets)


def train_loader(shards, sampler=RandomWindows, batch_size=4, **kwargs):
    return TrainLoader(shards, sampler(len(shards), T, 7), batch_size, T, **kwargs)


def take(loader, count):
    """`count` batches over as many passes as that needs."""
    return list(itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), count))


def same(batches, others):
    return len(batches) == len(others) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(batches, others)
    )


def rows(batches):
    return sorted(tuple(row) for batch in batches for row in batch["input_ids"].tolist())


def test_targets_are_the_inputs_shifted_by_one(shards, ids):
    starts = np.array([0, 295, 394, 50])
    batch = window_batch(shards, starts, T, separate=False)
    assert list(batch) == ["input_ids", "targets"]
    for tensor in batch.values():
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()
    for row, start in enumerate(starts):
        assert batch["input_ids"][row].tolist() == ids[start : start + T].tolist()
        assert batch["targets"][row].tolist() == ids[start + 1 : start + T + 1].tolist()


def test_no_targets_beyond_the_end(shards, ids):
    targets = window_batch(shards, np.array([394, 396, 402, 500]), T, separate=False)["targets"].tolist()
    assert targets[0] == ids[395:403].tolist()
    assert targets[1] == [*ids[397:403].tolist(), -100, -100]
    assert targets[2] == targets[3] == [-100] * T


def test_separate_documents_have_ids_and_no_target_across_a_boundary(shards, ids):
    batch = window_batch(shards, np.array([46, 49, 50, 296, 100]), T, separate=True)
    assert batch["document_ids"].tolist() == [
        [0, 0, 0, 0, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1, 1, 1, 1],
        [0] * 8,
    ]
    joined = window_batch(shards, np.array([46, 49, 50, 296, 100]), T, separate=False)
    assert torch.equal(batch["input_ids"], joined["input_ids"])
    hidden = (batch["targets"] == -100).nonzero().tolist()
    assert hidden == [[0, 3], [1, 0], [1, 7], [2, 6], [3, 3]]
    kept = batch["targets"] != -100
    assert torch.equal(batch["targets"][kept], joined["targets"][kept])


def test_an_epoch_of_batches_has_every_window_once(shards):
    loader = train_loader(shards, EpochWindows, batch_size=7)
    windows = len(loader.windows)
    assert windows == 49
    first, second = take(loader, 7), take(loader, 7)
    assert len(set(rows(first))) == len(set(rows(second))) == windows
    assert rows(first) != rows(second)


@pytest.mark.parametrize("sampler", [RandomWindows, EpochWindows])
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(shards, sampler):
    whole = take(train_loader(shards, sampler, batch_size=8), 20)
    for world_size in (2, 4):
        ranks = [
            take(train_loader(shards, sampler, 8 // world_size, rank=rank, world_size=world_size), 20)
            for rank in range(world_size)
        ]
        for batch, *parts in zip(whole, *ranks):
            assert rows([batch]) == rows(parts)


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("sampler", [RandomWindows, EpochWindows])
def test_resume_after_any_batch(shards, sampler, prefetch):
    uninterrupted = take(train_loader(shards, sampler), 40)
    for stop in (0, 1, 12, 13, 14, 39):
        first = train_loader(shards, sampler, prefetch=prefetch)
        assert same(take(first, stop), uninterrupted[:stop])
        state = first.state_dict()
        assert state == {"consumed_samples": 4 * stop}
        second = train_loader(shards, sampler, prefetch=prefetch)
        second.load_state_dict(state)
        assert same(take(second, 40 - stop), uninterrupted[stop:])


def test_resume_with_another_batch_size(shards):
    samples = [row for batch in take(train_loader(shards), 40) for row in batch["input_ids"].tolist()]
    loader = train_loader(shards, batch_size=16)
    loader.load_state_dict({"consumed_samples": 4 * 10})
    assert [row for batch in take(loader, 5) for row in batch["input_ids"].tolist()] == samples[40:120]


def test_a_batch_in_flight_is_not_consumed(shards):
    done = [0]
    loader = train_loader(shards, batches_done=lambda: done[0])
    batches = iter(loader)
    assert loader.consumed_samples == 0
    next(batches)
    assert loader.consumed_samples == 0
    done[0] = 1
    assert loader.consumed_samples == 4
    next(batches)
    assert loader.consumed_samples == 4


def test_passes_have_a_length_and_go_on(shards):
    loader = train_loader(shards)
    assert len(loader) == 13  # ceil(403 / 32)
    first = list(loader)
    assert len(first) == 13
    stopped_early = list(itertools.islice(loader, 5))
    assert same(first + stopped_early + list(loader), take(train_loader(shards), 31))


def test_repeat_shows_the_same_batches_in_each_pass(shards):
    loader = train_loader(shards, repeat=True)
    assert same(list(itertools.islice(loader, 3)), list(itertools.islice(loader, 3)))


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 30])
@pytest.mark.parametrize("tokens", [2, 5, 9, 10, 403])
def test_evaluation_has_every_target_once(tmp_path, ids, tokens, batch_size, world_size, prefetch):
    ids[:tokens].tofile(tmp_path / "val.bin")
    shards = TokenShards([tmp_path / "val.bin"], "uint16")
    loaders = [
        EvalLoader(shards, batch_size, T, rank=rank, world_size=world_size, prefetch=prefetch)
        for rank in range(world_size)
    ]
    ranks = [list(loader) for loader in loaders]
    assert {len(batches) for batches in ranks} == {len(loader) for loader in loaders}
    assert len({len(batches) for batches in ranks}) == 1
    assert all(batch["targets"].shape == (batch_size, T) for batches in ranks for batch in batches)
    # rows in the order of the split: batch by batch, row by row, rank by rank
    targets = torch.stack([torch.stack([batch["targets"] for batch in batches]) for batches in ranks], dim=2).flatten()
    assert targets[targets != -100].tolist() == ids[1:tokens].tolist()
    assert same(ranks[0], list(loaders[0]))


def test_prefetch_passes_errors_on_and_ends_its_thread(tmp_path):
    np.full(100, 300, np.uint16).tofile(tmp_path / "a.bin")
    loader = train_loader(TokenShards([tmp_path / "a.bin"], "uint16", 256), prefetch=True)
    with pytest.raises(ValueError, match="beyond the vocabulary"):
        next(iter(loader))
    loader = train_loader(TokenShards([tmp_path / "a.bin"], "uint16"), batch_size=1, prefetch=True)
    batches = iter(loader)
    next(batches)
    batches.close()
    for thread in threading.enumerate():
        if thread.name == "token-prefetch":
            thread.join(timeout=5)
            assert not thread.is_alive()
