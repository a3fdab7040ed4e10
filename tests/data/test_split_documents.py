import pytest

from lightning_gpt.data.document_files import Piece
from lightning_gpt.data.split_documents import scan, split_pieces


class Documents:
    """Documents in pieces of at most three characters."""

    name = "toy"

    def __init__(self, *texts):
        self.texts = texts

    def pieces(self):
        for text in self.texts:
            for start in range(0, len(text), 3):
                yield Piece(text[start : start + 3], start + 3 >= len(text))


def test_scan():
    facts = scan(Documents("abcd", "é"), seed=0)
    assert (facts.documents, facts.characters, facts.bytes, facts.alphabet) == (2, 5, 6, frozenset("abcdé"))
    assert facts.text_sha256 != scan(Documents("abc", "dé"), seed=0).text_sha256
    with pytest.raises(ValueError, match="'toy' is empty"):
        scan(Documents(), seed=0)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.3, 0.5, 0.9])
def test_tail_cuts_at_the_character(fraction):
    source = Documents("abcdef", "ghi", "jklmnopqrst")
    pieces = list(split_pieces(source, scan(source, 0), "tail", fraction, 0))
    text = {name: "".join(p.text for p in pieces if p.split == name) for name in ("train", "val")}
    assert text["train"] + text["val"] == "abcdefghijklmnopqrst"
    assert len(text["train"]) == int(20 * (1 - fraction))
    assert sum(p.complete for p in pieces) == 3
    assert [p for p in pieces if p.split == "train"][-1].ends


def test_documents_stay_whole_and_copies_stay_together():
    source = Documents(*[f"{n % 50} is the number" for n in range(100)])
    pieces = list(split_pieces(source, scan(source, 3), "document", 0.3, 3))
    sides, text = {}, ""
    for piece in pieces:
        text += piece.text
        if piece.complete:
            assert sides.setdefault(text, piece.split) == piece.split
            text = ""
    assert len(sides) == 50
    assert 5 <= list(sides.values()).count("val") <= 25


def test_a_document_always_validates():
    source = Documents("one", "two", "three")
    pieces = list(split_pieces(source, scan(source, 0), "document", 1e-9, 0))
    assert [p.split for p in pieces if p.complete].count("val") == 1


def test_empty_splits():
    source = Documents("abcdef")
    with pytest.raises(ValueError, match="the validation split of 6 characters would be empty"):
        split_pieces(source, scan(source, 0), "tail", 1e-17, 0)
    with pytest.raises(ValueError, match="the training split of 6 characters would be empty"):
        split_pieces(source, scan(source, 0), "tail", 0.99, 0)
    with pytest.raises(ValueError, match="at least two documents"):
        split_pieces(source, scan(source, 0), "document", 0.5, 0)
