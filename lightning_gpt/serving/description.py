"""The API as /openapi.json describes it. The functions here are only described: app.py calls those of the same names
in endpoints.py and small_endpoints.py."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Header, Path

from lightning_gpt.serving import api_answers as answers
from lightning_gpt.serving.api_types import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)

Timeout = Annotated[float | None, Header(gt=0, alias="X-Request-Timeout", description="Seconds until nobody wants it.")]

_REFUSALS = {
    400: "A value that is wrong; `param` names the field.",
    401: "No key, or an unknown one.",
    403: "A model that is not the tenant's.",
    404: "No such model.",
    408: "The body did not arrive, or X-Request-Timeout passed.",
    413: "The body is too large.",
    429: "Too much was asked for; Retry-After says when to come again.",
    500: "The service failed.",
    503: "Nobody can answer now; Retry-After says when to come again.",
    504: "The deadline has passed.",
}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": answers.ErrorAnswer, "description": _REFUSALS[status]} for status in statuses}


def describe(app: FastAPI) -> None:
    """Adds all paths to the description."""
    makes = _refusals(*_REFUSALS)
    streams: dict[int | str, Any] = {200: {"content": answers.STREAM}, **makes}

    @app.post("/v1/completions", response_model=answers.CompletionAnswer, responses=streams)
    async def completions(body: CompletionRequest, x_request_timeout: Timeout = None) -> None:
        """Continue texts."""

    @app.post("/v1/chat/completions", response_model=answers.ChatAnswer, responses=streams)
    async def chat_completions(body: ChatRequest, x_request_timeout: Timeout = None) -> None:
        """Answer a conversation."""

    @app.post("/v1/embeddings", response_model=answers.EmbeddingAnswer, responses=makes)
    async def embeddings(body: EmbeddingRequest, x_request_timeout: Timeout = None) -> None:
        """Vectors of texts: the mean of the last states, of length 1."""

    @app.post("/tokenize", response_model=answers.TokenizeAnswer, responses=_refusals(400, 401, 404, 408, 413, 429))
    async def tokenize(body: TokenizeRequest) -> None:
        """The ids that the model would read."""

    @app.post("/detokenize", response_model=answers.DetokenizeAnswer, responses=_refusals(400, 401, 404, 408, 413, 429))
    async def detokenize(body: DetokenizeRequest) -> None:
        """The text of ids."""

    @app.get("/v1/models", response_model=answers.ModelList, responses=_refusals(401, 429))
    async def models() -> None:
        """The models, and what each of them is."""

    @app.get("/v1/models/{name}", response_model=answers.ModelAbout, responses=_refusals(401, 404, 429))
    async def model(name: Annotated[str, Path()]) -> None:
        """One model."""

    @app.get("/health/live", response_model=answers.Health)
    async def live() -> None:
        """Whether the service runs."""

    @app.get("/health/ready", response_model=answers.Health, responses={503: {"model": answers.Health}})
    async def ready() -> None:
        """Whether it can be asked."""

    @app.get("/version", response_model=answers.Version)
    async def version() -> None:
        """Of the service."""
