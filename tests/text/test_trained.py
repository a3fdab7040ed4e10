import pytest

from lightning_gpt.text.tokenizer import Tokenizer
from lightning_gpt.text.trained import SMALLEST, train_tokenizer

CORPUS = [f"the quick brown fox number {n} jumps over the lazy dog, again and again.\n" for n in range(300)]


@pytest.mark.parametrize("scheme", ["bpe", "wordpiece", "unigram"])
def test_lossless_reloadable_and_the_same_in_transformers(scheme, nasty_texts, same_as_transformers):
    tokenizer = train_tokenizer(scheme, 600, CORPUS)
    assert (tokenizer.scheme, tokenizer.lossless, tokenizer.eos_id, tokenizer.unk_id) == (scheme, True, 0, None)
    for text in nasty_texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    same_as_transformers(tokenizer, nasty_texts)
    again = Tokenizer.from_json(tokenizer.to_json())
    assert (again.scheme, again.fingerprint, again.lossless) == (scheme, tokenizer.fingerprint, True)


@pytest.mark.parametrize("scheme", ["bpe", "wordpiece"])
def test_vocabulary_has_the_asked_size_and_compresses(scheme):
    tokenizer = train_tokenizer(scheme, 560, CORPUS)
    assert tokenizer.vocab_size == 560
    assert len(tokenizer.encode(CORPUS[0])) < len(CORPUS[0]) / 1.8


def test_unigram_learns_pieces_that_many_words_share():
    stems = ["walk", "talk", "jump", "climb", "paint", "count", "open", "close", "learn", "train"]
    texts = [f"{stem}{ending} " * 3 for stem in stems for ending in ("", "ing", "ed", "er", "ers")] * 20
    tokenizer = train_tokenizer("unigram", 300, texts)
    assert tokenizer.vocab_size <= 300
    assert len(tokenizer.encode(" walking")) <= 4


def test_wordpiece_knows_every_byte_in_every_place():
    tokenizer = train_tokenizer("wordpiece", SMALLEST["wordpiece"], ["aa"])
    assert tokenizer.vocab_size == 513
    text = "z" * 1000 + "\x00é☃" * 50
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert 0 not in tokenizer.encode(text)


@pytest.mark.parametrize(("scheme", "size", "message"), [("bpe", 256, "at least 257"), ("bpt", 999, "choose one of")])
def test_bad_requests(scheme, size, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(scheme, size, CORPUS)
