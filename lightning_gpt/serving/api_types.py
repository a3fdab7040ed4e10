"""What clients may send, in OpenAI's shapes; a mistake is an ApiError that names the field.

Fields that the official clients send and that change no text here (user, metadata, ...) are taken and ignored; fields
whose meaning this service lacks (tools, suffix, ...) are refused unless they ask for nothing.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lightning_gpt.serving.errors import ApiError

MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
_SHOWN = 80
"""Characters of a wrong value that an error repeats."""

T = TypeVar("T", bound=BaseModel)
Text = Annotated[str, Field(max_length=1 << 22)]
Token = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), use_attribute_docstrings=True)


class StreamOptions(_Body):
    include_usage: bool = False
    """Whether a last chunk tells the tokens."""
    include_obfuscation: bool | None = None
    """Ignored."""


class _Sampling(_Body):
    """What completions and chats have in common."""

    model: str | None = Field(None, max_length=300)
    """Name of a model, or name@version; may be left out where the service has only one."""
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    """0 = always the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, le=1 << 20)
    """Not OpenAI's. Null, 0 and -1 = all tokens."""
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    """Not OpenAI's."""
    repetition_penalty: float = Field(1.0, ge=0.01, le=10, allow_inf_nan=False)
    """Not OpenAI's. Logits are divided by it: next to 0 they would be infinite."""
    presence_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = Field(
        None, max_length=1024
    )
    """Token id -> what is added to its logit."""
    n: int = Field(1, ge=1, le=128)
    """Texts."""
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    """The text ends before any of these."""
    seed: int | None = Field(None, ge=-(1 << 63), le=(1 << 63) - 1)
    """Same request and seed, same text. Null = another text each time."""
    min_tokens: int = Field(0, ge=0, le=1 << 20)
    """Not OpenAI's: no end before."""
    ignore_eos: bool = False
    """Not OpenAI's: go on to max_tokens."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=512)
    """Requests of one user reach the same version of a model."""
    metadata: dict[str, Any] | None = None
    """Ignored."""
    store: bool | None = None
    """Ignored."""
    service_tier: str | None = None
    """Ignored."""
    safety_identifier: str | None = None
    """Ignored."""
    prompt_cache_key: str | None = None
    """Ignored: what requests begin with alike is always shared."""

    @field_validator("stream", "ignore_eos", "n", "temperature", "top_p", "seed", mode="before")
    @classmethod
    def _nulls(cls, value: Any, info: Any) -> Any:
        """Clients send null for what they leave to the service."""
        return cls.model_fields[info.field_name].default if value is None else value

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise ValueError(f"has the key {key[:_SHOWN]!r}, which must be a token id")
        return value

    @model_validator(mode="after")
    def _together(self) -> _Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: belong to stream=true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """As a tuple."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def usage_in_stream(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Sampling):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=256)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=256)]
    )
    """A text, its token ids, or several of either."""
    max_tokens: int | None = Field(None, ge=0, le=1 << 20)
    echo: bool = False
    """Give the prompt, too."""
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    """Log-probability of each token, and of so many of the likeliest in its place."""
    best_of: int | None = Field(None, ge=1, le=128)
    """Must equal n."""
    suffix: None = None
    """Not supported."""

    @model_validator(mode="after")
    def _best(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise ValueError(f"best_of: {self.best_of} differs from n={self.n}, which is not supported: leave it out")
        return self


class TextPart(_Body):
    type: Literal["text"]
    text: Text


class ChatMessage(_Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=256)]
    name: str | None = Field(None, max_length=256)
    """Ignored."""

    @property
    def text(self) -> str:
        """The words."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]


class ResponseFormat(_Body):
    type: Literal["text"]


class ChatRequest(_Sampling):
    """POST /v1/chat/completions."""

    messages: Messages
    max_tokens: int | None = Field(None, ge=1, le=1 << 20)
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 20)
    """The newer name of max_tokens."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    """Not supported."""
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    """Ignored."""

    @model_validator(mode="after")
    def _chat(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: belong to logprobs=true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens: and max_completion_tokens differ: give one of them")
        return self


class EmbeddingRequest(_Body):
    """POST /v1/embeddings."""

    model: str | None = Field(None, max_length=300)
    input: (
        Annotated[str, Field(min_length=1, max_length=1 << 22)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=256)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=256)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None
    """Not supported."""
    user: str | None = Field(None, max_length=512)


class TokenizeRequest(_Body):
    """POST /tokenize."""

    model: str | None = Field(None, max_length=300)
    prompt: Text | None = None
    messages: Messages | None = None

    @model_validator(mode="after")
    def _one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give it or messages, one of them")
        return self


class DetokenizeRequest(_Body):
    """POST /detokenize."""

    model: str | None = Field(None, max_length=300)
    tokens: Annotated[list[Token], Field(max_length=1 << 20)]


def checked(kind: type[T], raw: Any) -> T:
    """The request that a JSON value holds.

    Raises:
        ApiError: 400; its message and param name the field.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise _explained(error, kind) from None


def _explained(error: ValidationError, kind: type[BaseModel]) -> ApiError:
    found = error.errors(include_url=False)
    first = found[0]
    place = [part for part in first["loc"] if isinstance(part, int) or str(part) in kind.model_fields or _plain(part)]
    field = str(place[0]) if place else None
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    if first["type"] == "missing":
        return ApiError(400, f"{where} is missing: give it", field, "missing_field")
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), kind.model_fields, n=1)
        hint = f", did you mean {near[0]}?" if near else ": leave it out"
        return ApiError(400, f"{where[:_SHOWN]} is not supported here{hint}", where[:_SHOWN], "unknown_field")
    message = first["msg"].removeprefix("Value error, ")
    if field is None:
        name, colon, rest = message.partition(": ")
        if colon and name in kind.model_fields:
            return ApiError(400, f"{name} {rest}", name, "invalid_value")
        return ApiError(400, f"the body must be an object: {message}", None, "invalid_value")
    union = [other for other in found if other["loc"][:1] == first["loc"][:1]]
    if len(union) > 1 and len({other["loc"][1:2] for other in union}) > 1:
        message = f"must be one of: {'; '.join(dict.fromkeys(_lower(other['msg']) for other in union))}"
    shown = repr(first["input"])
    shown = "" if len(shown) > _SHOWN else f"={shown}"
    return ApiError(400, f"{where}{shown}: {_lower(message)}", field, "invalid_value")


def _plain(part: str | int) -> bool:
    """Whether part of an error's place is a name of ours, and not pydantic's word for a kind of value."""
    return isinstance(part, str) and part.isidentifier() and part not in ("str", "int", "float", "bool", "dict")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
