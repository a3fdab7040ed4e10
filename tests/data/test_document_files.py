import gzip
import json

import pytest

from lightning_gpt.data import document_files
from lightning_gpt.data.document_files import cut, file_kind, read_file
from lightning_gpt.text.byte import byte_tokenizer
from lightning_gpt.text.trained import train_tokenizer


def documents(path, text_field="text"):
    texts, parts = [], []
    for text, last in read_file(path, text_field):
        parts.append(text)
        if last:
            texts.append("".join(parts))
            parts = []
    assert not parts
    return texts


TEXT = "".join(
    f"Line {n} ends in a word\r\nor, sometimes,\n\n  in punctuation number {n}\nand on\n" for n in range(400)
)


@pytest.mark.parametrize("limit", [1, 2, 7, 50, 1000, len(TEXT) - 1, len(TEXT), len(TEXT) + 1])
def test_pieces_are_the_text_and_bounded(monkeypatch, limit):
    monkeypatch.setattr(document_files, "PIECE_CHARACTERS", limit)
    pieces = list(cut(TEXT))
    assert "".join(piece.text for piece in pieces) == TEXT
    assert all(0 < len(piece.text) <= limit for piece in pieces)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("scheme", ["byte", "bpe", "wordpiece", "unigram"])
def test_cutting_does_not_change_the_ids(monkeypatch, scheme):
    tokenizer = byte_tokenizer() if scheme == "byte" else train_tokenizer(scheme, 700, [TEXT])
    monkeypatch.setattr(document_files, "PIECE_CHARACTERS", 500)
    pieces = [piece.text for piece in cut(TEXT)]
    assert len(pieces) > 20
    assert [index for ids in tokenizer.encode_batch(pieces) for index in ids] == tokenizer.encode(TEXT)


def test_text_is_one_document_byte_for_byte(tmp_path):
    text = "a\r\nb\rc\n\x00 \ufeff é"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "empty.txt").write_bytes(b"")
    assert documents(tmp_path / "a.txt") == documents(tmp_path / "b.md.gz") == [text]
    assert documents(tmp_path / "empty.txt") == []


def test_jsonl_rows_are_documents(tmp_path):
    rows = [json.dumps({"text": "one\nline"}), "", json.dumps({"text": ""}), json.dumps({"text": "two"})]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    assert documents(path) == ["one\nline", "two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "x"}', r"rows\.jsonl:2 has no text in field 'text': it has body; choose with --text_field"),
        ('{"text": 3}', r"rows\.jsonl:2 has no text"),
        ("[1]", r"rows\.jsonl:2 has no text"),
        ("{", r"rows\.jsonl:2 is not JSON"),
        ('{"text": "\\ud800"}', r"rows\.jsonl:2 holds half of a surrogate pair"),
    ],
)
def test_bad_jsonl_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        documents(path)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"story": ["one", None, "two"], "n": [1, 2, 3]}), path)
    assert documents(path, "story") == ["one", "two"]
    with pytest.raises(ValueError, match="no column 'text': it has story, n"):
        documents(path)
    with pytest.raises(ValueError, match="holds int, not text"):
        documents(path, "n")
    (tmp_path / "foreign.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match="is not a parquet file"):
        documents(tmp_path / "foreign.parquet")


def test_unreadable_files(tmp_path):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 text"):
        documents(tmp_path / "latin.txt")
    (tmp_path / "broken.txt.gz").write_bytes(gzip.compress(b"some text" * 99)[:-12])
    with pytest.raises(ValueError, match=r"broken\.txt\.gz cannot be read"):
        documents(tmp_path / "broken.txt.gz")
    (tmp_path / "plain.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"plain\.txt\.gz cannot be read"):
        documents(tmp_path / "plain.txt.gz")


def test_kinds(tmp_path):
    names = ["a.TXT", "a.md", "a.jsonl.gz", "a.parquet", "a.gz", "a.py", "txt"]
    assert [file_kind(tmp_path / name) for name in names] == [".txt", ".md", ".jsonl", ".parquet", None, None, None]
