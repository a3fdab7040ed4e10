import numpy as np

from lightning_gpt.data.shard_writer import ShardWriter


def test_shards_are_full_and_offsets_mark_documents(tmp_path):
    writer = ShardWriter(tmp_path, "train", np.dtype("<u2"), shard_tokens=5)
    writer.append(np.array([1, 2], np.uint32), ends=False)
    writer.append(np.array([3], np.uint32), ends=True)
    writer.append(np.array([4, 5, 6, 7], np.uint32), ends=True)
    writer.append(np.array([8, 9, 10], np.uint32), ends=True)
    writer.append(np.array([], np.uint32), ends=True)
    writer.append(np.array([11], np.uint32), ends=True)
    shards = writer.close()
    ids = [np.fromfile(tmp_path / shard.file, "<u2").tolist() for shard in shards]
    offsets = [np.load(tmp_path / shard.offsets_file).tolist() for shard in shards]
    assert ids == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11]]
    assert offsets == [[0, 3, 5], [0, 2, 5], [0, 1]]
    assert [(shard.tokens, shard.documents) for shard in shards] == [(5, 2), (5, 2), (1, 1)]


def test_nothing_written_is_no_shard(tmp_path):
    assert ShardWriter(tmp_path, "val", np.dtype("<u4"), 5).close() == []
    assert list(tmp_path.iterdir()) == []
