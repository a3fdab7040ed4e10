import json

import numpy as np
import pytest

from lightning_gpt.data.corpus_meta import CorpusMeta, ShardMeta, SplitMeta, TokenizerMeta


def write_corpus(directory):
    directory.mkdir()
    np.arange(10, dtype="<u2").tofile(directory / "train_00000.bin")
    meta = CorpusMeta(
        name="toy",
        tokenizer=TokenizerMeta("byte", "f" * 64, 256, None),
        dtype="uint16",
        text_sha256="a" * 64,
        fingerprint="b" * 64,
        splits={"train": SplitMeta([ShardMeta("train_00000.bin", 10, 2)], 10, 2, 30, 28)},
    )
    meta.save(directory)
    return meta


def test_round_trip_and_paths(tmp_path):
    corpus = tmp_path / "toy"
    meta = write_corpus(corpus)
    assert CorpusMeta.load(corpus) == meta
    assert meta.shard_paths(corpus, "train") == [corpus / "train_00000.bin"]
    assert meta.offsets_paths(corpus, "train") == [corpus / "train_00000.offsets.npy"]
    assert meta.split("train").bytes_per_token == 3.0
    assert [path.name for path in corpus.iterdir() if "tmp" in path.name] == []


def test_missing_directory_and_foreign_directory(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist.*lightning-gpt prepare"):
        CorpusMeta.load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no meta\.json"):
        CorpusMeta.load(tmp_path)
    (tmp_path / "meta.json").write_text('{"format": 1, "vocab_size": 65}')
    with pytest.raises(ValueError, match="not the description of a prepared corpus"):
        CorpusMeta.load(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(ValueError, match="not the description of a prepared corpus"):
        CorpusMeta.load(tmp_path)


def test_other_format_unknown_split_truncated_and_missing_shard(tmp_path):
    corpus = tmp_path / "toy"
    meta = write_corpus(corpus)
    with pytest.raises(ValueError, match="split='val'"):
        meta.split("val")
    (corpus / "train_00000.bin").write_bytes(b"\0" * 18)
    with pytest.raises(ValueError, match="has 18 bytes, not 20"):
        CorpusMeta.load(corpus)
    (corpus / "train_00000.bin").unlink()
    with pytest.raises(ValueError, match="is missing"):
        CorpusMeta.load(corpus)
    raw = json.loads((corpus / "meta.json").read_text())
    (corpus / "meta.json").write_text(json.dumps({**raw, "format": 2}))
    with pytest.raises(ValueError, match="format 2 is not 1"):
        CorpusMeta.load(corpus)
