import pickle

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lightning_gpt.text.byte import byte_tokenizer
from lightning_gpt.text.tokenizer import Tokenizer
from lightning_gpt.text.trained import train_tokenizer


def bert_like() -> tokenizers.Tokenizer:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "hello": 4, "##s": 5, ",": 6}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    backend.enable_truncation(4)
    return backend


def test_foreign_tokenizer_keeps_its_ids_and_is_not_called_lossless():
    tokenizer = Tokenizer.from_json(bert_like().to_str())
    assert (tokenizer.scheme, tokenizer.lossless) == ("huggingface", False)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) == (2, 3, 0, 1)
    assert tokenizer.encode("Hellos, hello, hello x") == [4, 5, 6, 4, 6, 4, 1]


def test_normalization_is_not_lossless():
    backend = tokenizers.Tokenizer.from_str(byte_tokenizer().to_json())
    backend.normalizer = normalizers.NFC()
    tokenizer = Tokenizer(backend)
    assert not tokenizer.lossless
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "\u00e9"


def test_prefix_space_is_not_lossless():
    backend = tokenizers.Tokenizer.from_str(byte_tokenizer().to_json())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    assert not Tokenizer(backend).lossless


def test_special_tokens_in_text_are_text_unless_allowed():
    tokenizer = train_tokenizer("bpe", 300, ["some text"])
    text = "a<|endoftext|>b"
    assert tokenizer.eos_id not in tokenizer.encode(text)
    assert tokenizer.encode(text, allow_special=True).count(tokenizer.eos_id) == 1
    assert tokenizer.encode_batch([text], allow_special=True) == [tokenizer.encode(text, allow_special=True)]
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True)) == text
    assert tokenizer.token_text(tokenizer.eos_id) == "<|endoftext|>"


def test_batch_pickle_and_fingerprint():
    tokenizer = train_tokenizer("bpe", 300, ["some text, some more text"])
    texts = ["some", "", "more text"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode_batch(texts) == tokenizer.encode_batch(texts)
    assert tokenizer.fingerprint != train_tokenizer("bpe", 301, ["other words"]).fingerprint


def test_errors():
    with pytest.raises(ValueError, match="token id 256 is outside the vocabulary of 256"):
        byte_tokenizer().decode([1, 256])
    with pytest.raises(ValueError, match=r"not the content of a tokenizer\.json"):
        Tokenizer.from_json("{}")
