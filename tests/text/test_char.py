import numpy as np
import pytest

from lightning_gpt.text.char import char_tokenizer
from lightning_gpt.text.tokenizer import Tokenizer


def test_vocabulary_is_the_sorted_distinct_characters():
    tokenizer = char_tokenizer("hello world\n")
    assert (tokenizer.scheme, tokenizer.lossless, tokenizer.vocab_size) == ("char", True, 9)
    assert tokenizer.encode("\n dehlorw") == list(range(9))
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (None, None, None)


def test_end_of_text_only_when_asked():
    tokenizer = char_tokenizer("ab", end_of_text=True)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (3, 2)
    assert tokenizer.decode([0, 2, 1]) == "a<|endoftext|>b"
    assert Tokenizer.from_json(tokenizer.to_json()).scheme == "char"


def test_round_trip_fast_equals_slow_and_transformers(nasty_texts, same_as_transformers):
    tokenizer = char_tokenizer("".join(nasty_texts))
    for text in nasty_texts:
        fast, slow = tokenizer.encode_arrays([text])[0], tokenizer.encode_arrays_slow([text])[0]
        np.testing.assert_array_equal(fast, slow)
        assert tokenizer.decode(fast) == text
    same_as_transformers(tokenizer, nasty_texts)


@pytest.mark.parametrize("text", ["ab☃", "abZ", "ab\U0010ffff"])
def test_unknown_character_is_named_on_both_paths(text):
    tokenizer = char_tokenizer("abc")
    name = f"U\\+{ord(text[2]):04X}, at position 2"
    with pytest.raises(ValueError, match=name):
        tokenizer.encode(text)
    with pytest.raises(ValueError, match=name):
        tokenizer.encode_arrays_slow(["abc", text])


def test_bad_vocabulary():
    with pytest.raises(ValueError, match="at least one character"):
        char_tokenizer("")
    with pytest.raises(ValueError, match="single characters, not 'bc'"):
        char_tokenizer(["a", "bc"])
