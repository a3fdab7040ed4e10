import numpy as np

from lightning_gpt.text.byte import byte_tokenizer


def test_ids_are_the_utf8_bytes(nasty_texts, same_as_transformers):
    tokenizer = byte_tokenizer()
    assert (tokenizer.scheme, tokenizer.lossless, tokenizer.vocab_size, tokenizer.eos_id) == ("byte", True, 256, None)
    for text in nasty_texts:
        assert tokenizer.encode(text) == list(text.encode("utf-8"))
        np.testing.assert_array_equal(tokenizer.encode_arrays_slow([text])[0], tokenizer.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text
    same_as_transformers(tokenizer, nasty_texts)


def test_half_a_character_decodes_to_the_replacement_character():
    assert byte_tokenizer().decode("é".encode()[:1]) == "\ufffd"


def test_end_of_text_is_the_last_id():
    tokenizer = byte_tokenizer(end_of_text=True)
    assert (tokenizer.scheme, tokenizer.vocab_size, tokenizer.eos_id) == ("byte", 257, 256)
