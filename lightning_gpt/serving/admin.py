"""/admin: what operators change while the service runs. Only for tenants with admin: true."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lightning_gpt.serving.config import VersionConfig, explain
from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.exchange import Exchange
from lightning_gpt.serving.replica import WorkerStartError
from lightning_gpt.serving.service import Service

T = TypeVar("T", bound=BaseModel)


class _Weight(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    weight: float = Field(ge=0, allow_inf_nan=False)


async def admin(exchange: Exchange, service: Service) -> None:
    """Any request below /admin/:

    GET /admin/status; POST /admin/models/NAME/versions with a version as in service.yaml loads it;
    PUT /admin/models/NAME/versions/ID with {"weight": 0.1} gives it another share, and a canary that was rolled back
    another chance; DELETE /admin/models/NAME/versions/ID takes it out when its requests are answered.
    """
    tenant = service.admission.identify(exchange)
    exchange.record.endpoint = "/admin"
    if not tenant.admin:
        raise ApiError(403, "only a tenant with admin: true may do this", code="forbidden")
    method, parts = exchange.scope["method"], exchange.scope["path"].split("/")[2:]
    if parts == ["status"] and method == "GET":
        await exchange.respond(200, _status(service))
        return
    if len(parts) in (3, 4) and parts[0] == "models" and parts[2] == "versions":
        model = service.models.get(parts[1])
        if model is None:
            raise ApiError(404, f"there is no model {parts[1][:80]!r}", "model", "model_not_found")
        if len(parts) == 3 and method == "POST":
            version = await _checked(exchange, service, VersionConfig)
            try:
                await model.load(version, service.threads(version))
            except WorkerStartError as error:
                raise ApiError(400, f"it cannot be loaded: {error}", "path", "not_loaded") from None
        elif len(parts) == 4 and method == "DELETE":
            await model.unload(parts[3], service.config.drain_s)
        elif len(parts) == 4 and method == "PUT":
            model.find(parts[3])
            model.rollout.set_weight(parts[3], (await _checked(exchange, service, _Weight)).weight)
        else:
            raise ApiError(405, f"{method} is not for this", code="method_not_allowed")
        service.event("versions_changed", {"model": model.name, "shares": model.rollout.router.weights})
        await exchange.respond(200, {**model.about(), "created": int(service.started)})
        return
    raise ApiError(404, f"there is nothing at {exchange.scope['path'][:200]}", code="not_found")


async def _checked(exchange: Exchange, service: Service, kind: type[T]) -> T:
    limits = service.config.limits
    raw = await exchange.json(limits.max_body_bytes, limits.body_timeout_s)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise ApiError(400, explain(error, kind), code="invalid_value") from None


def _status(service: Service) -> dict[str, Any]:
    """The state of everything."""
    return {
        "open": service.open,
        "draining": service.draining,
        "models": {
            model.name: {
                served.id: {
                    "share": model.rollout.router.share(served.id),
                    "ready": served.pool.ready,
                    "running": served.pool.running,
                    "waiting": served.pool.waiting,
                    "restarts": served.pool.restarts,
                    "workers": [
                        {
                            "name": replica.name,
                            "pid": replica.pid,
                            "active": replica.active,
                            "calls": len(replica.calls),
                            "resident_bytes": replica.stats.resident_bytes,
                        }
                        for replica in served.pool.replicas
                    ],
                }
                for served in model.versions.values()
            }
            for model in service.models.values()
        },
        "admission": _finite(service.admission.about()),
    }


def _finite(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
