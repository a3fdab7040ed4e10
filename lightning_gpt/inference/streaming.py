"""Text that appears token by token: whole characters only, and never past a stop string."""

from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Protocol

from lightning_gpt.text.tokenizer import Tokenizer

REPLACEMENT = "�"
"""U+FFFD, what decoders write for bytes that are not (yet) UTF-8."""


class Decoder(Protocol):
    """What a tokenizer must offer here."""

    def decode(self, ids: Sequence[int]) -> str: ...


class StreamDecoder:
    """Ids to text, incrementally: the pieces joined are decode(all ids).

    A character may be spread over several tokens, so a replacement character at the end of the text is held back
    until it is known whether the next token completes it. Only the last few ids are decoded again at every step.

    Args:
        tokenizer: decodes ids.
        context: ids before the stream; some decoders write the first word of a text differently.
    """

    KEPT = 4
    """Ids before the newest that are decoded again, for decoders that look back."""

    def __init__(self, tokenizer: Decoder, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context[-self.KEPT :])
        self._given = len(tokenizer.decode(self._ids)) if self._ids else 0

    def push(self, token_id: int) -> str:
        """Text that is certain after one more token; may be empty."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        certain = text.removesuffix(REPLACEMENT)
        piece = certain[self._given :]
        self._given = max(self._given, len(certain))
        if len(self._ids) > 4 * self.KEPT and certain == text:
            self._ids = self._ids[-self.KEPT :]
            self._given = len(self._tokenizer.decode(self._ids))
        return piece

    def finish(self) -> str:
        """What was held back."""
        piece = self._tokenizer.decode(self._ids)[self._given :] if self._ids else ""
        self._given += len(piece)
        return piece


class ByteStreamDecoder:
    """A StreamDecoder for tokenizers that join bytes: nothing is decoded twice.

    Args:
        tokenizer: with joins_bytes.
        context: ids before the stream.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._bytes_of = tokenizer.token_bytes
        self._decode = getincrementaldecoder("utf-8")("replace").decode
        for token_id in context[-StreamDecoder.KEPT :]:
            self._decode(self._bytes_of(token_id))

    def push(self, token_id: int) -> str:
        """As StreamDecoder."""
        return self._decode(self._bytes_of(token_id))

    def finish(self) -> str:
        """As StreamDecoder."""
        return self._decode(b"", True)


def stream_decoder(tokenizer: Tokenizer, context: Sequence[int] = ()) -> StreamDecoder | ByteStreamDecoder:
    """The fastest for a tokenizer. Arguments as StreamDecoder."""
    return (ByteStreamDecoder if tokenizer.joins_bytes else StreamDecoder)(tokenizer, context)


class StopMatcher:
    """Ends a stream before the first stop string, wherever token boundaries fall.

    Args:
        stops: the strings; empty ones are ignored.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Text that cannot be part of a stop string. After a match `stopped` is true and nothing more comes."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back as the possible beginning of a stop string."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that begins `stop`."""
        return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
