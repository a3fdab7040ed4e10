import itertools
import json
import random

import numpy as np
import pytest

from lightning_gpt.data import document_files
from lightning_gpt.data.corpus_meta import CorpusMeta
from lightning_gpt.data.prepare import prepare
from lightning_gpt.data.tokenizer_source import load_tokenizer


@pytest.fixture
def corpus(tmp_path):
    """A folder of 30 documents with some Unicode."""
    generator = random.Random(0)
    words = ["the", "quick", "brown fox", "naïve", "☃", "漢字", "and\nthen", "sleeps,\n", "again\r\n", "\t"]
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(30):
        text = " ".join(generator.choice(words) for _ in range(200))
        (folder / f"{number:02d}.txt").write_bytes(text.encode())
    return folder


def whole_text(folder):
    return [path.read_bytes().decode() for path in sorted(folder.iterdir())]


def read_ids(directory, split):
    meta = CorpusMeta.load(directory)
    return np.concatenate([np.fromfile(path, meta.numpy_dtype) for path in meta.shard_paths(directory, split)])


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe:400", "wordpiece:600", "unigram:400"])
def test_decoding_the_shards_gives_the_text_back(corpus, tmp_path, tokenizer):
    prepared = prepare(str(corpus), tokenizer, tmp_path / "out", add_eos=False, shard_tokens=999, quiet=True)
    made = load_tokenizer(tmp_path / "out")
    text = "".join(whole_text(corpus))
    train, val = (made.decode(read_ids(tmp_path / "out", split)) for split in ("train", "val"))
    assert train + val == text
    assert len(train) == int(len(text) * 0.9)
    meta = prepared.meta
    assert sum(split.bytes for split in meta.splits.values()) == len(text.encode())
    assert (meta.splits["val"].characters, meta.splits["val"].unknown_tokens) == (len(val), 0)
    assert len(meta.splits["train"].shards) > 1
    assert meta.tokenizer.vocab_size == made.vocab_size
    if tokenizer == "char":
        assert made.vocab_size == len(set(text))


def test_document_split_offsets_and_end_of_text(corpus, tmp_path):
    prepared = prepare(str(corpus), "bpe:400", tmp_path / "out", split="document", val_fraction=0.3, quiet=True)
    made, found = load_tokenizer(tmp_path / "out"), []
    for split, meta in prepared.meta.splits.items():
        ids = read_ids(tmp_path / "out", split)
        [offsets_path] = prepared.meta.offsets_paths(tmp_path / "out", split)
        offsets = np.load(offsets_path)
        assert (offsets.dtype, offsets[-1], len(offsets) - 1) == (np.uint64, len(ids), meta.documents)
        for start, end in itertools.pairwise(offsets):
            assert ids[end - 1] == made.eos_id
            found.append(made.decode(ids[start : end - 1]))
    assert sorted(found) == sorted(whole_text(corpus))


def test_processes_give_the_same_shards_as_one(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(document_files, "PIECE_CHARACTERS", 100)
    ours = [prepare(str(corpus), "bpe:400", tmp_path / str(n), workers=n, quiet=True).meta for n in (0, 2)]
    assert ours[0] == ours[1]
    np.testing.assert_array_equal(read_ids(tmp_path / "0", "train"), read_ids(tmp_path / "2", "train"))


def test_end_of_text_for_characters_when_asked(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefghij")
    prepared = prepare(str(tmp_path / "a.txt"), "char", tmp_path / "out", add_eos=True, quiet=True)
    assert (prepared.meta.tokenizer.vocab_size, prepared.meta.tokenizer.eos_id) == (11, 10)
    # the training part of the document that is cut by the border does not end
    assert read_ids(tmp_path / "out", "train").tolist() == list(range(9))
    assert read_ids(tmp_path / "out", "val").tolist() == [9, 10]


def test_up_to_date_is_left_alone_and_stale_is_refused(corpus, tmp_path):
    out = tmp_path / "out"
    first = prepare(str(corpus), "bpe:400", out, quiet=True)
    changed = (out / "meta.json").stat().st_mtime_ns
    again = prepare(str(corpus), "bpe:400", out, quiet=True)
    assert (first.reused, again.reused, again.meta) == (False, True, first.meta)
    assert (out / "meta.json").stat().st_mtime_ns == changed
    with pytest.raises(ValueError, match=r"tokenizer was 'bpe:400', not 'byte'.*--overwrite"):
        prepare(str(corpus), "byte", out, quiet=True)
    with pytest.raises(ValueError, match=r"val_fraction was 0\.1, not 0\.2"):
        prepare(str(corpus), "bpe:400", out, val_fraction=0.2, quiet=True)
    (corpus / "00.txt").write_text("changed")
    with pytest.raises(ValueError, match="its text is another"):
        prepare(str(corpus), "bpe:400", out, quiet=True)
    assert CorpusMeta.load(out) == first.meta
    second = prepare(str(corpus), "bpe:400", out, overwrite=True, quiet=True)
    assert not second.reused
    assert second.meta.fingerprint != first.meta.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"texts", "out"}


def test_a_changed_tokenizer_file_is_noticed(corpus, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    prepare(str(corpus), "bpe:400", out, quiet=True)
    prepare(str(corpus), str(out / "tokenizer.json"), other, quiet=True)
    # the same tokenizer under another path is no difference
    assert prepare(str(corpus), str(other), other, quiet=True).reused
    raw = json.loads((out / "tokenizer.json").read_text())
    raw["model"]["merges"].pop()
    (out / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="has changed since"):
        prepare(str(corpus), str(out / "tokenizer.json"), other, quiet=True)
    with pytest.raises(ValueError, match=r"its tokenizer\.json is not the one that made the ids"):
        prepare(str(corpus), "bpe:400", out, quiet=True)


def test_failure_leaves_nothing_and_keeps_the_old(corpus, tmp_path):
    out = tmp_path / "out"
    first = prepare(str(corpus), "byte", out, quiet=True)
    prepare(str(corpus / "00.txt"), "char", tmp_path / "small", quiet=True)
    (corpus / "00.txt").write_text("©")
    with pytest.raises(ValueError, match=r"U\+00A9"):
        prepare(str(corpus), str(tmp_path / "small"), out, overwrite=True, quiet=True)
    assert CorpusMeta.load(out) == first.meta
    assert {path.name for path in tmp_path.iterdir()} == {"texts", "out", "small"}


def test_foreign_directory_is_never_overwritten(corpus, tmp_path):
    with pytest.raises(ValueError, match="is not a prepared corpus: choose another --out"):
        prepare(str(corpus), "byte", corpus, overwrite=True, quiet=True)


def test_large_vocabulary_takes_four_bytes(corpus, tmp_path):
    from lightning_gpt.text.char import char_tokenizer

    characters = {chr(n) for n in range(0x21, 0x11000) if not 0xD800 <= n <= 0xDFFF}
    (tmp_path / "tokenizer.json").write_text(char_tokenizer(characters | set("".join(whole_text(corpus)))).to_json())
    prepared = prepare(str(corpus), str(tmp_path / "tokenizer.json"), tmp_path / "out", quiet=True)
    assert prepared.meta.dtype == "uint32"
    text = "".join(whole_text(corpus))
    made = load_tokenizer(tmp_path / "out")
    assert made.decode(read_ids(tmp_path / "out", "train")) == text[: int(len(text) * 0.9)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_fraction": 0}, "val_fraction=0 must lie between"),
        ({"split": "head"}, "split='head' is unknown"),
        ({"shard_tokens": 0}, "shard_tokens=0"),
        ({"tokenizer": "bpe:12"}, "vocab_size=12 is too small"),
        ({"tokenizer": "gpt-2"}, "did you mean 'gpt2'"),
        ({"workers": -1}, "workers=-1"),
    ],
)
def test_bad_settings(corpus, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        prepare(str(corpus), **{"tokenizer": "byte", **settings}, out=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_empty_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="the corpus 'a' is empty"):
        prepare(str(tmp_path / "a.txt"), "byte", tmp_path / "out", quiet=True)
