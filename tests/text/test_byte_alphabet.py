from tokenizers.pre_tokenizers import ByteLevel

from lightning_gpt.text.byte_alphabet import BYTE_TO_CHARACTER, bytes_to_token, token_to_bytes


def test_alphabet_is_the_librarys_and_inverts():
    assert set(BYTE_TO_CHARACTER.values()) == set(ByteLevel.alphabet())
    assert bytes_to_token(b" the\n") == "ĠtheĊ"
    assert token_to_bytes(bytes_to_token(bytes(range(256)))) == bytes(range(256))
