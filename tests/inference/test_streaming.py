import random

import pytest
import tokenizers as tokenizers_library

from lightning_gpt.inference.streaming import ByteStreamDecoder, StopMatcher, StreamDecoder, stream_decoder
from lightning_gpt.text.byte import byte_tokenizer
from lightning_gpt.text.char import char_tokenizer
from lightning_gpt.text.tokenizer import Tokenizer
from lightning_gpt.text.trained import train_tokenizer

TEXT = "naïve café 👩‍👩‍👧‍👦 漢字 \U0010ffff — don't  stop,  now\n\n" * 3


def tokenizers():
    yield byte_tokenizer()
    yield char_tokenizer(TEXT)
    for scheme, size in (("bpe", 280), ("wordpiece", 520), ("unigram", 300)):
        yield train_tokenizer(scheme, size, [TEXT * 4])


@pytest.mark.parametrize("tokenizer", list(tokenizers()), ids=lambda tokenizer: tokenizer.scheme)
@pytest.mark.parametrize("cut", [0, 1, 9])
@pytest.mark.parametrize("kind", [StreamDecoder, stream_decoder])
def test_pieces_join_to_the_text_and_no_character_is_broken(tokenizer, cut, kind):
    ids = tokenizer.encode(TEXT)
    context = tokenizer.encode(TEXT[:cut])
    stream = kind(tokenizer, context)
    pieces = [stream.push(index) for index in ids]
    assert not any("�" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == TEXT


@pytest.mark.parametrize("kind", [StreamDecoder, ByteStreamDecoder])
def test_bytes_that_are_no_text_come_out_as_the_decoder_writes_them(kind):
    tokenizer, generator = byte_tokenizer(end_of_text=True), random.Random(0)
    for _ in range(30):
        ids = [generator.choice([generator.randrange(257), 0x80, 0xE2, 65]) for _ in range(60)]
        stream = kind(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)


def test_special_tokens_are_written_as_they_are():
    backend = tokenizers_library.Tokenizer.from_str(byte_tokenizer().to_json())
    backend.add_special_tokens(["<|ende|>", "《é》"])
    tokenizer = Tokenizer(backend)
    ids = [65, 256, 0xC3, 257, 0xA9, 66]
    assert tokenizer.joins_bytes
    stream = ByteStreamDecoder(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)
    assert not char_tokenizer("ab").joins_bytes


def test_an_unfinished_character_is_given_at_the_end():
    stream = StreamDecoder(byte_tokenizer())
    assert [stream.push(byte) for byte in (65, 0xE2, 0x82)] == ["A", "", ""]
    assert stream.finish() == "�"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two END three", ["END"], "one two "),
        ("aaab", ["aab"], "a"),
        ("no match EN", ["END"], "no match EN"),
        ("first second", ["cond", "st s"], "fir"),
        ("x\n\ny", ["\n\n"], "x"),
        ("END", ["END"], ""),
        ("abc", ["", "z"], "abc"),
    ],
)
def test_stop_strings_across_pieces(text, stops, expected, size):
    matcher = StopMatcher(stops)
    out = "".join(matcher.push(text[start : start + size]) for start in range(0, len(text), size))
    assert out + matcher.finish() == expected
    assert matcher.stopped == (expected != text)
