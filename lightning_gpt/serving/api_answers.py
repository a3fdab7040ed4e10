"""What the API answers, for its description (/openapi.json) alone: answers are written as plain dictionaries, which a
test holds against these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


class ErrorDetail(_Answer):
    message: str
    type: str
    param: str | None
    """The field at fault."""
    code: str | None


class ErrorAnswer(_Answer):
    """Every refusal and failure."""

    error: ErrorDetail


class Usage(_Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TextLogprobs(_Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(_Answer):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionAnswer(_Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    """The version that answered."""
    choices: list[TextChoice]
    usage: Usage


class TokenChance(_Answer):
    token: str
    logprob: float
    bytes: list[int]


class ContentChance(TokenChance):
    top_logprobs: list[TokenChance]


class ChatLogprobs(_Answer):
    content: list[ContentChance]
    refusal: None


class AssistantMessage(_Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Answer):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(_Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class Embedding(_Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or base64 of little-endian float32."""


class EmbeddingUsage(_Answer):
    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(_Answer):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class TokenizeAnswer(_Answer):
    tokens: list[int]
    texts: list[str]
    count: int
    max_model_len: int


class DetokenizeAnswer(_Answer):
    prompt: str


class VersionAbout(_Answer):
    id: str
    share: float
    ready: bool
    parameters: int
    rolled_back: bool


class ModelAbout(_Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    parameters: int
    chat: bool
    """Whether the model was made for conversations; others converse as a plain text."""
    versions: list[VersionAbout]


class ModelList(_Answer):
    object: Literal["list"]
    data: list[ModelAbout]


class Health(_Answer):
    status: str
    uptime_s: float | None = None


class Version(_Answer):
    version: str


STREAM: dict[str, Any] = {
    "text/event-stream": {
        "itemSchema": {
            "type": "object",
            "required": ["data"],
            "properties": {"data": {"type": "string", "description": "A chunk as JSON; of the last event [DONE]."}},
        }
    }
}
"""What stream=true gives instead: each event, in OpenAPI 3.2's word for it."""
