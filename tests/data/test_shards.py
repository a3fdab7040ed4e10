import os

import numpy as np
import psutil
import pytest

from lightning_gpt.data.shards import RESIDENT_BYTES, TokenShards


def write_shards(directory, lengths, dtype="uint16", documents=()):
    """Random ids; returns (paths, offsets paths, all ids)."""
    rng = np.random.default_rng(0)
    paths, offsets, parts = [], [], []
    for number, length in enumerate(lengths):
        parts.append(rng.integers(0, 200, length).astype(dtype))
        paths.append(directory / f"s{number}.bin")
        parts[-1].tofile(paths[-1])
        offsets.append(directory / f"s{number}.offsets.npy")
        np.save(offsets[-1], np.array([0, *(documents[number] if documents else ()), length], np.uint64))
    return paths, offsets, np.concatenate(parts)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("lengths", [[300], [100, 7, 0, 193], [5] * 60])
def test_gather_equals_slicing(tmp_path, lengths, dtype):
    paths, _, ids = write_shards(tmp_path, lengths, dtype)
    shards = TokenShards(paths, dtype)
    assert len(shards) == 300
    for length in (1, 9, 40):
        starts = np.arange(300 - length + 1)
        expected = np.stack([ids[start : start + length] for start in starts])
        np.testing.assert_array_equal(shards.gather(starts, length), expected)
        for start in (0, 150, 300 - length):
            np.testing.assert_array_equal(shards.gather(np.array([start]), length), expected[[start]])


@pytest.mark.parametrize("lengths", [[50], [20, 30]])
def test_beyond_the_end_is_zero(tmp_path, lengths):
    paths, _, ids = write_shards(tmp_path, lengths)
    padded = np.concatenate([ids, np.zeros(200, np.uint16)])
    starts = np.array([3, 45, 49, 50, 130])
    expected = np.stack([padded[start : start + 8] for start in starts])
    np.testing.assert_array_equal(TokenShards(paths, "uint16").gather(starts, 8), expected)


def test_document_ids_equal_counting(tmp_path):
    boundaries = [(10, 10, 17, 60), (), (1, 2, 3)]
    paths, offsets, _ = write_shards(tmp_path, [80, 20, 100], documents=boundaries)
    document_of = np.zeros(260, int)  # one more document after the end
    for boundary in {10, 17, 60, 80, 100, 101, 102, 103, 200}:
        document_of[boundary:] += 1
    starts = np.array([0, 5, 10, 11, 79, 80, 95, 185, 199])
    expected = np.stack([document_of[s : s + 20] - document_of[s] for s in starts])
    np.testing.assert_array_equal(TokenShards(paths, "uint16", None, offsets).document_ids(starts, 20), expected)


def test_id_beyond_the_vocabulary_names_its_place(tmp_path):
    paths, _, ids = write_shards(tmp_path, [50, 50])
    ids[50:][7] = 256
    ids[50:].tofile(paths[1])
    shards = TokenShards(paths, "uint16", vocab_size=256)
    shards.gather(np.array([0, 20]), 10)
    with pytest.raises(ValueError, match=r"s1\.bin: token id 256 at 7 is beyond the vocabulary of 256"):
        shards.gather(np.array([0, 45]), 20)


def test_offsets_of_another_file_are_refused(tmp_path):
    paths, offsets, _ = write_shards(tmp_path, [50])
    np.save(offsets[0], np.array([0, 10, 49], np.uint64))
    with pytest.raises(ValueError, match="does not delimit 50 tokens"):
        TokenShards(paths, "uint16", None, offsets)


def test_memory_stays_flat_over_ten_gigabytes(tmp_path):
    path = tmp_path / "huge.bin"
    path.touch()
    os.truncate(path, 10 << 30)  # sparse: takes no room on the disk
    shards = TokenShards([path], "uint16", vocab_size=256)
    assert len(shards) == 5 << 30
    rng = np.random.default_rng(0)
    process = psutil.Process()
    before = process.memory_info().rss
    peak = 0
    for _ in range(400):  # touches 25,600 windows: 1.6 GB of pages if none were given back
        assert shards.gather(rng.integers(0, len(shards) - 1025, 64), 1025).shape == (64, 1025)
        peak = max(peak, process.memory_info().rss)
    assert peak - before < RESIDENT_BYTES + (32 << 20)
