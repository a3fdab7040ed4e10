"""The ASGI application. Its own paths are found in a dictionary; FastAPI describes them, and serves the pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lightning_gpt import __version__
from lightning_gpt.serving import endpoints, small_endpoints
from lightning_gpt.serving.admin import admin
from lightning_gpt.serving.description import describe
from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.exchange import ClientGone, Exchange, Receive, Send
from lightning_gpt.serving.page_routes import page_routes
from lightning_gpt.serving.service import Service

Handler = Callable[[Exchange, Service], Awaitable[None]]

PATHS: dict[str, dict[str, Handler]] = {
    "/v1/completions": {"POST": endpoints.completions},
    "/v1/chat/completions": {"POST": endpoints.chat_completions},
    "/v1/embeddings": {"POST": small_endpoints.embeddings},
    "/v1/models": {"GET": small_endpoints.models},
    "/tokenize": {"POST": small_endpoints.tokenize},
    "/detokenize": {"POST": small_endpoints.detokenize},
    "/health": {"GET": small_endpoints.live},
    "/health/live": {"GET": small_endpoints.live},
    "/health/ready": {"GET": small_endpoints.ready},
    "/metrics": {"GET": small_endpoints.metrics},
    "/version": {"GET": small_endpoints.version},
}
WATCHED = ("/v1/", "/tokenize", "/detokenize", "/admin/")
"""Beginnings of the paths whose requests are counted and logged; probes and scrapes would drown them."""


class Application:
    """One service over ASGI.

    Args:
        service: behind it.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.pages = FastAPI(
            title="lightning_gpt",
            version=__version__,
            description="Texts from language models, in the shapes of OpenAI's API.",
            docs_url="/docs",
            redoc_url=None,
            redirect_slashes=False,  # the place to go to would be made of the client's Host header
            routes=page_routes(),
        )
        describe(self.pages)
        self.pages.add_exception_handler(HTTPException, _refuse)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            assert scope["type"] == "websocket", "lifespan is off"
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        path = scope["path"]
        handler = _handler(path, scope["method"])
        if handler is None:
            await self.pages(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self.service.config.trust_proxy)
        if self.service.draining:
            exchange.extra.append((b"connection", b"close"))
        if not path.startswith(WATCHED):
            await self._answer(handler, exchange)
            return
        exchange.record.endpoint = "/v1/models" if path.startswith("/v1/models") else path
        self.service.open += 1
        try:
            await self._answer(handler if self.service.loaded else _not_yet, exchange)
        finally:
            self.service.open -= 1
            self.service.finished(exchange.record, exchange.prompt, exchange.answer)

    async def _answer(self, handler: Handler, exchange: Exchange) -> None:
        """Whatever happens, there is an answer in OpenAI's shape, or nobody who waits for one."""
        try:
            await handler(exchange, self.service)
        except ApiError as error:
            self.service.admission.refused(exchange, error)
            await exchange.refuse(error)
        except ClientGone:
            exchange.record.status = 499
        except Exception as error:
            self.service.log.failure(error, request_id=exchange.record.request_id)
            exchange.record.code = "internal_error"
            if exchange.started:
                raise  # the server closes the connection: half an answer must not look whole
            await exchange.refuse(ApiError(500, "the service failed on this request", code="internal_error"))


async def _not_yet(exchange: Exchange, service: Service) -> None:
    raise ApiError(503, "the models are being loaded: try again", code="no_worker", retry_after_s=1)


def _handler(path: str, method: str) -> Handler | None:
    """Of one of our own paths; None = a page, or nothing at all."""
    found = PATHS.get(path)
    if found is not None:
        return found.get(method)
    if path.startswith("/v1/models/") and method == "GET":
        return small_endpoints.model
    if path.startswith("/admin/"):
        return admin
    return None


async def _refuse(request: Any, error: HTTPException) -> JSONResponse:
    """404 and 405 as everything else is refused."""
    path = request.url.path
    allowed = PATHS.get(path)
    if allowed is not None:
        error = HTTPException(405, headers={"allow": ", ".join(allowed)})
    message = (
        f"there is nothing at {path[:200]}" if error.status_code == 404 else f"{request.method} is not for {path[:200]}"
    )
    code = "not_found" if error.status_code == 404 else "method_not_allowed"
    body = ApiError(error.status_code, message, code=code).body()
    return JSONResponse(body, error.status_code, headers=error.headers)
