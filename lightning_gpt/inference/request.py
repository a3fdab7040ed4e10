"""What the engine is asked for, and what it gives. Legend: T tokens, C width."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lightning_gpt.inference.sampling import SamplingConfig

Overflow = Literal["refuse", "slide"]
Finish = Literal["eos", "stop", "length", "cancelled"]
"""Why a text ended: one of its end tokens, a stop string, max_new_tokens, or by order."""


@dataclass(frozen=True)
class Request:
    """A text to continue.

    Raises:
        ValueError: a value outside its range, by itself or (when it is given to an engine) for the network.
    """

    prompt: Sequence[int]
    """Token ids, at least one."""
    max_new_tokens: int = 16
    """0 = only read the prompt, for its prompt_logprobs."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How tokens are drawn."""
    seed: int = 0
    """Same request, same seed, same text, whatever is computed beside it."""
    stop: Sequence[str] = ()
    """The text ends before any of these strings; needs an engine with a tokenizer."""
    end_ids: Collection[int] = ()
    """The text ends with any of these tokens, which is given out but not written."""
    min_new_tokens: int = 0
    """No end token is drawn before."""
    banned_ids: Collection[int] = ()
    """Never drawn, such as the token that stands for a picture."""
    unwritten_ids: Collection[int] = ()
    """Drawn but not written, such as special tokens."""
    logprobs: int | None = None
    """Give the log-probability of each new token, before temperature and filters, and this many of the likeliest."""
    prompt_logprobs: int | None = None
    """The same of each token of the prompt; nothing is shared with requests that begin alike then."""
    priority: int = 0
    """Smaller is served first; among equals who came first."""
    tenant: str = ""
    """Only requests of one tenant share what they begin with: how fast an answer comes then tells nobody else that
    the beginning was asked before."""
    embeds: Tensor | None = None
    """(T, C), read in place of the embeddings of the first T tokens of the prompt (pictures, nn/vision_language.py).
    Shared with requests whose embeds begin alike."""
    overflow: Overflow = "refuse"
    """When block_size is full: refuse = ValueError before anything is generated; slide = the older half is forgotten
    and the rest is read again (positions start anew), so the cost of forgetting is spread over block_size / 2 tokens.
    A prompt longer than block_size starts with its last block_size / 2."""

    def __post_init__(self) -> None:
        if not len(self.prompt):
            raise ValueError("the prompt is empty: give at least one token, such as the end-of-text token")
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must not be negative")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} must be from 0 to max_new_tokens={self.max_new_tokens}"
            )
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None and count < 0:
                raise ValueError(f"{name}={count} must be 0 (of the token itself only) or more, or null for none")
        if self.overflow not in ("refuse", "slide"):
            raise ValueError(f"overflow={self.overflow!r} is unknown: use refuse or slide")
        if self.overflow == "slide" and self.embeds is not None:
            raise ValueError(
                "overflow=slide reads a window again by its ids, which are not the prompt_embeds: use overflow=refuse "
                "and fewer new tokens"
            )


@dataclass(slots=True)
class TokenLogprob:
    """A token's log-probability in nats, and the likeliest tokens in its place, (id, log-probability), best first."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(slots=True)
class Output:
    """One new token of a request, or its end without one."""

    key: int
    """What `add` returned."""
    token: int | None
    """None = the request was cancelled, or asked for no new tokens."""
    text: str = ""
    """What is certain of the text now; may be empty, or of several tokens."""
    finish: Finish | None = None
    """Set on the last."""
    logprob: TokenLogprob | None = None
    prompt: list[TokenLogprob | None] | None = None
    """On the first, if prompt_logprobs were asked for: one for each token of the prompt, None for its first."""


@dataclass
class Completion:
    """All outputs of a request together."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt: list[TokenLogprob | None] | None = None

    def add(self, output: Output) -> None:
        """One more output."""
        if output.token is not None:
            self.tokens.append(output.token)
        if output.logprob is not None:
            self.logprobs.append(output.logprob)
        if output.prompt is not None:
            self.prompt = output.prompt
        self.text += output.text
        self.finish = output.finish
