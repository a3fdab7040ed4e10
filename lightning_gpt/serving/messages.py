"""What gateway and worker say to each other: pickled tuples behind their length, over a socket pair between a parent
and the child that it started (nobody else can write to it).

Every frame holds a list, so that one write carries all that is new.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lightning_gpt.serving.record import WorkerStats

_LENGTH = struct.Struct("<I")


@dataclass(slots=True)
class Order:
    """A text that a worker shall continue, or whose vector it shall give."""

    key: int
    """The gateway's; unique for a worker."""
    prompt: list[int]
    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stream: bool = False
    """Send every piece, instead of the whole."""
    chat: bool = False
    """The turn's end ends it, too."""
    embed: bool = False
    """Give the mean of the last states, not a text."""
    tenant: str = ""
    priority: int = 0


class Cancel(NamedTuple):
    """An order is not wanted any more."""

    key: int


Chance = tuple[int, float, list[tuple[int, float]]]
"""A token's id, its log-probability, and the likeliest in its place."""


class Piece(NamedTuple):
    """What is new of an order; for one that is not streamed, all of it."""

    key: int
    text: str
    tokens: int
    """New tokens in it."""
    finish: str | None
    """Set on the last: eos, stop, length, cancelled."""
    first: float
    """time.monotonic() of its first token."""
    ids: list[int]
    """The new tokens, where log-probabilities are asked for."""
    chances: list[Chance] | None = None
    prompt_chances: list[Chance | None] | None = None
    vector: list[float] | None = None


class Refused(NamedTuple):
    """An order that the engine cannot take: the client's mistake."""

    key: int
    message: str


class Broken(NamedTuple):
    """An order that failed in the engine, which goes on."""

    key: int
    message: str


class Failed(NamedTuple):
    """The worker cannot start, and why."""

    message: str


@dataclass(slots=True)
class Hello:
    """A worker is ready, and what it serves."""

    tokenizer: str
    """Content of tokenizer.json."""
    roles: Any
    """text.roles.Roles."""
    vocab_size: int
    block_size: int
    parameters: int
    max_running: int
    chat: bool
    """Whether the model has a chat template of its own."""
    image_token: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    """Shown to clients who ask what the model is."""


class Beat(NamedTuple):
    """A sign of life."""

    stats: WorkerStats


def pack(letters: list[Any]) -> bytes:
    """A frame."""
    body = pickle.dumps(letters, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


class Unpacker:
    """Bytes as they come, letters as they are complete."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The letters that these bytes complete."""
        held, letters, place = self._bytes, [], 0
        held += data
        while len(held) - place >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(held, place)
            end = place + _LENGTH.size + length
            if len(held) < end:
                break
            with memoryview(held) as view:
                letters += pickle.loads(view[place + _LENGTH.size : end])
            place = end
        if place:
            del held[:place]
        return letters
