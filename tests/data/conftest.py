import numpy as np
import pytest

from lightning_gpt.data.corpus_meta import CorpusMeta, ShardMeta, SplitMeta, TokenizerMeta
from lightning_gpt.text.byte import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def make_corpus(tmp_path, tokenizer):
    """make_corpus({"train": [shard, ...], "val": [...]}), a shard being a list of documents (arrays of ids)."""

    def write(splits, name="corpus", dtype="uint16", fingerprint="b" * 64):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        described = {}
        for split, shards in splits.items():
            metas = []
            for number, documents in enumerate(shards):
                file = f"{split}_{number:05d}.bin"
                ids = np.concatenate(documents)
                ids.astype(np.dtype(dtype).newbyteorder("<")).tofile(directory / file)
                offsets = np.cumsum([0, *map(len, documents)]).astype(np.uint64)
                np.save(directory / f"{split}_{number:05d}.offsets.npy", offsets)
                metas.append(ShardMeta(file, len(ids), len(documents)))
            tokens = sum(shard.tokens for shard in metas)
            documents = sum(shard.documents for shard in metas)
            described[split] = SplitMeta(metas, tokens, documents, 2 * tokens, 2 * tokens)
        CorpusMeta(
            name=name,
            tokenizer=TokenizerMeta("byte", tokenizer.fingerprint, tokenizer.vocab_size, None),
            dtype=dtype,
            text_sha256="a" * 64,
            fingerprint=fingerprint,
            splits=described,
        ).save(directory)
        return directory

    return write
