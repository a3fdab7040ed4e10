"""The endpoints that make no text: vectors, tokens, models, health."""

from __future__ import annotations

import base64
import struct
import time
from typing import Any

from lightning_gpt import __version__
from lightning_gpt.serving.api_types import DetokenizeRequest, EmbeddingRequest, TokenizeRequest, checked
from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.exchange import Exchange
from lightning_gpt.serving.generation import submitted
from lightning_gpt.serving.messages import Order
from lightning_gpt.serving.service import Service
from lightning_gpt.serving.tenants import Tenant


async def embeddings(exchange: Exchange, service: Service) -> None:
    """POST /v1/embeddings: the mean of a text's last states, of length 1."""
    tenant = service.admission.identify(exchange)
    service.admission.shed(tenant)
    request, served = await _read(exchange, service, tenant, EmbeddingRequest)
    given = request.input
    many = isinstance(given, list) and not isinstance(given[0], int)
    prompts = [served.codec.prompt(one, "input") for one in (given if many else [given])]
    longest = max(map(len, prompts))
    if longest > served.block_size:
        raise ApiError(
            400,
            f"input of {longest} tokens exceeds the model's context of {served.block_size}: shorten it",
            "input",
            "context_length_exceeded",
        )
    used = exchange.record.prompt_tokens = sum(map(len, prompts))
    orders = [Order(0, prompt, 0, embed=True, tenant=tenant.name) for prompt in prompts]
    vectors: list[Any] = [None] * len(orders)
    async with submitted(exchange, service, tenant, served, orders) as inbox:
        left = len(orders)
        while left:
            for call, piece in await inbox.take():
                vectors[call.index] = piece.vector
                left -= 1
    if request.encoding_format == "base64":
        vectors = [base64.b64encode(struct.pack(f"<{len(one)}f", *one)).decode() for one in vectors]
    await exchange.respond(
        200,
        {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": one} for i, one in enumerate(vectors)],
            "model": served.model,
            "usage": {"prompt_tokens": used, "total_tokens": used},
        },
    )


async def tokenize(exchange: Exchange, service: Service) -> None:
    """POST /tokenize: the ids that the model would read."""
    tenant = service.admission.identify(exchange)
    request, served = await _read(exchange, service, tenant, TokenizeRequest)
    if request.messages is not None:
        tokens = served.codec.chat(request.messages)
    else:
        tokens = served.codec.prompt(request.prompt)
    texts = [served.codec.token_text(token) for token in tokens]
    await exchange.respond(
        200, {"tokens": tokens, "texts": texts, "count": len(tokens), "max_model_len": served.block_size}
    )


async def detokenize(exchange: Exchange, service: Service) -> None:
    """POST /detokenize: the text of ids."""
    tenant = service.admission.identify(exchange)
    request, served = await _read(exchange, service, tenant, DetokenizeRequest)
    tokens = served.codec.prompt(request.tokens, "tokens") if request.tokens else []
    try:
        text = served.codec.tokenizer.decode(tokens)
    except ValueError as error:  # ids that the network has and the tokenizer lacks
        raise ApiError(400, f"tokens: {error}", "tokens", "invalid_value") from None
    await exchange.respond(200, {"prompt": text})


async def _read(exchange: Exchange, service: Service, tenant: Tenant, kind: type) -> tuple[Any, Any]:
    limits, record = service.config.limits, exchange.record
    request = checked(kind, await exchange.json(limits.max_body_bytes, limits.body_timeout_s))
    record.model = request.model or ""
    served = service.route(request.model, getattr(request, "user", None) or record.request_id)
    service.admission.permit(tenant, served)
    record.model, record.version = served.model, served.id
    return request, served


async def models(exchange: Exchange, service: Service) -> None:
    """GET /v1/models."""
    tenant = service.admission.identify(exchange)
    data = [_about(model, service) for model in service.models.values() if tenant.may_use(model.name)]
    await exchange.respond(200, {"object": "list", "data": data})


async def model(exchange: Exchange, service: Service) -> None:
    """GET /v1/models/{name}."""
    tenant = service.admission.identify(exchange)
    name = exchange.scope["path"].removeprefix("/v1/models/")
    found = service.models.get(name)
    if found is None or not tenant.may_use(name):
        raise ApiError(404, f"there is no model {name[:80]!r}", "model", "model_not_found")
    await exchange.respond(200, _about(found, service))


def _about(served: Any, service: Service) -> dict[str, Any]:
    return {**served.about(), "created": int(service.started)}


async def live(exchange: Exchange, service: Service) -> None:
    """GET /health/live: the gateway runs. Workers that hang are its own business: it starts them anew."""
    await exchange.respond(200, {"status": "live", "uptime_s": round(time.time() - service.started, 1)})


async def ready(exchange: Exchange, service: Service) -> None:
    """GET /health/ready: 503 while models load, while the service drains, and when nothing can be asked."""
    good = service.ready
    status = "ready" if good else "draining" if service.draining else "loading" if not service.loaded else "unavailable"
    await exchange.respond(200 if good else 503, {"status": status})


async def version(exchange: Exchange, service: Service) -> None:
    """GET /version."""
    await exchange.respond(200, {"version": __version__})


async def metrics(exchange: Exchange, service: Service) -> None:
    """GET /metrics: for Prometheus."""
    kind, body = service.metrics.text(exchange.header("accept") or "")
    await exchange.start(200, [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())])
    await exchange.write(body, more=False)
