import pytest
import tokenizers
from tokenizers import models

from lightning_gpt.text.byte import byte_tokenizer
from lightning_gpt.text.char import char_tokenizer
from lightning_gpt.text.roles import Roles
from lightning_gpt.text.special_tokens import with_special_token
from lightning_gpt.text.tokenizer import Tokenizer
from lightning_gpt.text.trained import train_tokenizer

TEXT = "what is in the picture? a cat, a <b> cat: <imag image> né"


def bpe() -> Tokenizer:
    return train_tokenizer("bpe", 300, [TEXT] * 20)


@pytest.mark.parametrize("make", [byte_tokenizer, lambda: char_tokenizer(TEXT, end_of_text=True), bpe])
def test_one_id_more_and_everything_else_as_before(make):
    before = make()
    after = with_special_token(before, "<image>")
    assert after.special_tokens == {**before.special_tokens, "<image>": before.vocab_size}
    assert (after.vocab_size, after.scheme, after.lossless) == (before.vocab_size + 1, before.scheme, before.lossless)
    assert "<image>" not in before.special_tokens
    assert after.encode(TEXT) == before.encode(TEXT)
    assert after.eos_id == before.eos_id
    assert after.encode("<image>a", allow_special=True) == [before.vocab_size, *before.encode("a")]
    assert before.vocab_size not in after.encode("<image>")  # a user's text cannot forge it
    assert after.decode([before.vocab_size]) == "<image>"
    again = Tokenizer.from_json(after.to_json())
    assert again.special_tokens == after.special_tokens
    assert with_special_token(after, "<image>") is after


def test_roles_stay():
    roles = Roles(eos="<|endoftext|>", end_ids=(3,), chat_template="{{ messages }}")
    before = Tokenizer.from_json(byte_tokenizer(end_of_text=True).to_json(), roles)
    after = with_special_token(before, "<image>")
    assert after.roles == roles
    assert after.end_ids == {256, 3}


def test_what_cannot_be_added_is_refused():
    with pytest.raises(ValueError, match="must have a text"):
        with_special_token(byte_tokenizer(), "")
    with pytest.raises(ValueError, match="'a' is an ordinary piece"):
        with_special_token(byte_tokenizer(), "a")
    gaps = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a")))
    with pytest.raises(ValueError, match="2 tokens, but ids up to 7"):
        with_special_token(gaps, "<image>")
