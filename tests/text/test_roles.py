import pickle

import pytest

from lightning_gpt.text.roles import Roles
from lightning_gpt.text.tokenizer import Tokenizer
from lightning_gpt.text.trained import train_tokenizer


@pytest.fixture(scope="module")
def backend():
    tokenizer = train_tokenizer("bpe", 280, ["to be or not to be"])
    backend = tokenizer._with_special
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|done|>"])
    return backend


def test_without_words_of_a_model_common_names_decide(backend):
    tokenizer = Tokenizer.from_json(backend.to_str())
    ids = tokenizer.special_tokens
    assert tokenizer.eos_id == ids["<|endoftext|>"]
    assert tokenizer.bos_id == ids["<|im_start|>"]
    assert (tokenizer.pad_id, tokenizer.end_ids) == (None, {tokenizer.eos_id})


def test_what_a_model_says_wins(backend):
    config = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|im_end|>", "bos_token": None}
    roles = Roles.from_files(config | {"chat_template": "{{ messages }}"}, {"eos_token_id": [3, 4]})
    tokenizer = Tokenizer.from_json(backend.to_str(), roles)
    ids = tokenizer.special_tokens
    assert tokenizer.eos_id == tokenizer.pad_id == ids["<|im_end|>"]
    assert tokenizer.bos_id == ids["<|im_start|>"]
    assert tokenizer.end_ids == {ids["<|im_end|>"], 3, 4}
    assert tokenizer.roles.chat_template == "{{ messages }}"
    assert Roles.from_files({}, {"eos_token_id": 7}, "file").end_ids == (7,)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert (again.roles, again.eos_id) == (tokenizer.roles, tokenizer.eos_id)
