"""Who may ask for what now, in the order in which it costs least to refuse: guessed keys, keys, limits, the foreseen
wait, the breaker; the queue's own limit is the pool's."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from lightning_gpt.serving.config import ServiceConfig
from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.exchange import ClientGone, Exchange
from lightning_gpt.serving.guess_guard import GuessGuard
from lightning_gpt.serving.lane import Lane
from lightning_gpt.serving.metrics import Metrics
from lightning_gpt.serving.pool import Event
from lightning_gpt.serving.quotas import QuotaLedger
from lightning_gpt.serving.rate_limits import Lease, TenantLimits
from lightning_gpt.serving.record import RequestRecord
from lightning_gpt.serving.response_cache import ResponseCache, cache_key, cacheable
from lightning_gpt.serving.tenants import Tenant, TenantBook

if TYPE_CHECKING:
    from lightning_gpt.serving.generation import Job
    from lightning_gpt.serving.served_model import ServedModel, ServedVersion
    from lightning_gpt.serving.service import Service

TICK_S = 0.25
"""Time between looks at files and at pressure."""
SHUT_S = 0.02
"""After a request was shed, those that come are not looked at for so long. What waits is enough for longer."""
GENERATES = (b"/v1/completions", b"/v1/chat/completions", b"/v1/embeddings")
"""Paths of requests that are shed."""
_AFTER_ID = b',"object":'


class Ticket:
    """The right to one request."""

    __slots__ = ("_lane", "_lease", "_number", "_record")

    def __init__(self, lease: Lease, lane: Lane, number: int, record: RequestRecord) -> None:
        self._lease, self._lane, self._number, self._record = lease, lane, number, record

    def settle(self, prompt_tokens: int, new_tokens: int, error: BaseException | None) -> None:
        """It is over; the first call counts.

        Args:
            prompt_tokens: that were read; 0 = no worker had it.
            new_tokens: that were made.
            error: what it ended with.
        """
        lane, lease, record = self._lane, self._lease, self._record
        dispatched, failed = record.dispatched, self._is_failure(error)
        if dispatched is None and isinstance(error, ApiError):
            lease.refund()
        elif dispatched is not None and error is not None and not failed and not record.stream:
            # Nobody was told how many tokens were made. A client that leaves just before the end would pay nothing.
            lease.settle(lease.reserved)
        else:
            lease.settle(prompt_tokens + new_tokens)
        if dispatched is not None:
            lane.leave(lease.reserved, time.monotonic() - dispatched)
        if failed and (dispatched is not None or not lane.served.pool.ready):
            lane.breaker.failed(self._number)
        elif dispatched is None or error is not None or record.code is not None:
            lane.breaker.abandoned(self._number)
        else:
            lane.breaker.succeeded(self._number)

    def _is_failure(self, error: BaseException | None) -> bool:
        """Whether an end speaks against the version: not the client's leaving, nor a deadline that it set itself (408),
        with which one client could shut out all."""
        if isinstance(error, ClientGone | asyncio.CancelledError):
            return False
        code = self._record.code  # of a stream that ended early, with its head sent
        status = 500 if error is not None or code is not None else 200
        if isinstance(error, ApiError):
            status, code = error.status, error.code
        return status >= 500 and code not in ("draining", "client_deadline")


class Admission:
    """Tenants, limits, breakers, canaries.

    Args:
        config: service.yaml's.
        metrics: told of refusals.
        event: told of changes.

    Raises:
        ValueError: the file of tenants is missing or wrong.
    """

    def __init__(self, config: ServiceConfig, metrics: Metrics, event: Event) -> None:
        self.config, self.metrics, self.event = config, metrics, event
        tenants = None if config.tenants is None else Path(config.tenants)
        quotas = None if tenants is None else tenants.with_suffix(".quotas.json")
        quotas = quotas if config.quotas is None else Path(config.quotas)
        self.book = TenantBook(tenants)
        self.guard = GuessGuard()
        self.ledger = QuotaLedger(quotas)
        self.limits = TenantLimits(self.ledger)
        self.cache = ResponseCache(config.cache.max_bytes, config.cache.ttl_s)
        self.lanes: dict[tuple[str, str], Lane] = {}
        """(model, version) -> what protects it."""
        self._models: dict[str, ServedModel] = {}
        self._fallbacks = {model.name: model.fallback for model in config.models}
        self._shown: dict[tuple[str, str], tuple[str, int]] = {}  # state and level that were last told
        self._complaint: str | None = None
        self._shut: ApiError | None = None
        self._shut_until = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self, service: Service) -> None:
        """Begins to watch files and pressure."""
        self._models = service.models
        if self.ledger.warning:
            self.event("quotas_damaged", {"why": self.ledger.warning})
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Writes down what must be kept."""
        if self._task is not None:
            self._task.cancel()
        self._complain(self.ledger.flush(now=True))

    def loaded(self, served: ServedVersion) -> None:
        """A version begins to serve."""
        fallback = self._fallbacks.get(served.model) is not None
        self.lanes[served.model, served.id] = Lane(served, self.config, fallback)

    def unloaded(self, served: ServedVersion) -> None:
        """A version is gone; another may come under its name, so no answer of it is kept."""
        self.lanes.pop((served.model, served.id), None)
        self._shown.pop((served.model, served.id), None)
        self.cache.clear()

    @property
    def ready(self) -> bool:
        """Whether every model, or its fallback, has a version with a worker and a breaker that lets some through."""
        works = {model for (model, _), lane in self.lanes.items() if not lane.broken}
        return all(model in works or self._fallbacks.get(model) in works for model, _ in self.lanes)

    def identify(self, exchange: Exchange) -> Tenant:
        """Whose request it is; before its body is read.

        Raises:
            ApiError: 401, 429.
        """
        self.guard.check(exchange.client)
        header = exchange.header("authorization")
        try:
            tenant = self.book.authenticate(header)
        except ApiError:
            if header is not None:
                self.guard.failed(exchange.client)
            exchange.extra.append((b"www-authenticate", b"Bearer"))
            raise
        exchange.record.tenant = tenant.name
        return tenant

    def shed(self, tenant: Tenant) -> None:
        """Refuses a request unread when every version would refuse it whatever it is: in an overload most requests end
        here, and each costs a fraction of one that is read.

        Raises:
            ApiError: 429.
        """
        refusal = None
        for lane in self.lanes.values():
            refusal = lane.refusal(tenant.priority)
            if refusal is None:
                return
        if refusal is not None:
            if tenant.priority <= self.book.best_priority:
                self._shut, self._shut_until = refusal, time.monotonic() + SHUT_S
            raise refusal

    def shut(self, url: bytes) -> ApiError | None:
        """What a request is told that comes right after one of the best class was shed; None = it is to be read."""
        if self._shut is None:
            return None
        if time.monotonic() >= self._shut_until:
            self._shut = None
        return self._shut if url in GENERATES else None

    def choose(
        self, service: Service, tenant: Tenant, name: str | None, sticky: str, record: RequestRecord
    ) -> ServedVersion:
        """Which version answers a tenant's request: another one of the model where one is broken, and the model's
        fallback where all are, or where the pressure is high.

        Raises:
            ApiError: 400, 403, 404, 503.
        """
        served = service.route(name, sticky)
        self.permit(tenant, served)
        lane = self.lanes[served.model, served.id]
        if not lane.asks_for_help or (name is not None and name != served.model):  # a version that is named is meant
            return served
        if lane.broken:
            model = service.models[served.model]
            others = [one.id for one in model.versions.values() if not self.lanes[one.model, one.id].broken]
            other = model.rollout.router.route(sticky, others)
            if other is not None:
                return model.versions[other]
        fallback = service.models.get(self._fallbacks.get(served.model) or "")
        if fallback is None:
            return served
        smaller = fallback.choose(sticky)
        if self.lanes[smaller.model, smaller.id].broken:
            return served
        record.degraded = True
        return smaller

    @staticmethod
    def permit(tenant: Tenant, served: ServedVersion) -> None:
        """Whether a model is among the tenant's.

        Raises:
            ApiError: 404.
        """
        if not tenant.may_use(served.model):
            raise ApiError(404, f"there is no model {served.model!r} for {tenant.name}", "model", "model_not_found")

    def most_tokens(self, served: ServedVersion) -> int | None:
        """New tokens that a request may ask for while answers are shortened; None = they are not."""
        return self.config.degraded_max_tokens if self.lanes[served.model, served.id].level else None

    def admit(
        self,
        tenant: Tenant,
        served: ServedVersion,
        prompt_tokens: int,
        new_tokens: int,
        deadline: float,
        exchange: Exchange,
    ) -> Ticket:
        """Whether the request may begin now.

        Raises:
            ApiError: 429, 503.
        """
        try:
            lease = self.limits.admit(tenant, prompt_tokens, new_tokens)
        finally:
            headers = self.limits.headers(tenant).items()
            exchange.extra += [(name.encode(), value.encode()) for name, value in headers]
        lane = self.lanes[served.model, served.id]
        try:
            number = lane.enter(lease.reserved, tenant.priority, deadline)
        except BaseException:
            lease.refund()
            raise
        return Ticket(lease, lane, number, exchange.record)

    def kept_answer(self, exchange: Exchange, job: Job, tenant: Tenant) -> bytes | None:
        """The answer, if the same was asked before."""
        key = self._key(exchange, job, tenant)
        if key is None:
            return None
        rest = self.cache.get(key)
        if rest is None:
            self.metrics.cache_missed(job.served.model, job.served.id)
            return None
        exchange.record.cached = True
        exchange.extra.append((b"x-cache", b"hit"))
        return b'{"id":' + orjson.dumps(job.id) + rest

    def keep_answer(self, exchange: Exchange, job: Job, tenant: Tenant, body: bytes) -> None:
        """Keeps an answer for whoever asks the same."""
        key = self._key(exchange, job, tenant)
        if key is not None:
            self.cache.put(key, body[body.index(_AFTER_ID) :])

    def _key(self, exchange: Exchange, job: Job, tenant: Tenant) -> bytes | None:
        if not self.cache.max_bytes or exchange.record.degraded:
            return None
        request = job.request.model_dump(exclude_unset=True)
        if not cacheable(request):
            return None
        version = f"{job.served.model}@{job.served.id}"
        return cache_key(exchange.record.endpoint, version, tenant.name, request)

    def refused(self, exchange: Exchange, error: ApiError) -> None:
        """A request was refused, here or elsewhere."""
        record = exchange.record
        counted = error.status in (401, 413, 429, 503, 504) or error.code == "client_deadline"
        if not counted or error.code is None:
            return
        self.metrics.rejected(record.model, error.code)
        lane = self.lanes.get((record.model, record.version))
        if error.code == "queue_full" and lane is not None:  # half of the queue is gone by then
            error.retry_after_s = max(error.retry_after_s or 1.0, lane.predicted_wait() / 2)

    def finished(self, record: RequestRecord) -> None:
        """A request is over: if a worker had it, it says something of its version."""
        model = self._models.get(record.model)
        if model is None or record.dispatched is None or record.status == 499:
            return
        streamed_badly = record.status == 200 and record.code is not None
        good = record.status < 500 and not streamed_badly
        seconds = None
        if record.status == 200 and record.completion_tokens:  # answers differ in length, so a token's time
            seconds = (record.finished - record.dispatched) / record.completion_tokens
        reason = model.rollout.record(record.version, good, seconds)
        if reason is not None:
            self.metrics.rolled_back(record.model, record.version)
            self.event("rollback", {"model": record.model, "version": record.version, "why": reason})

    async def _watch(self) -> None:
        while True:
            self._tick()
            await asyncio.sleep(TICK_S)

    def _tick(self) -> None:
        if self.book.path is not None:
            trouble = self.book.refresh()
            if trouble is not None:
                self.event("tenants_refused", {"why": trouble})
            self.limits.keep(self.book.names)
        self._complain(self.ledger.flush())
        for (model, version), lane in self.lanes.items():
            lane.tick()
            state, level = lane.breaker.state, lane.level
            if self._shown.get((model, version), ("closed", 0)) != (state, level):
                about = {"model": model, "version": version, "state": state, "degraded": level}
                self.event("breaker" if state != "closed" else "degradation", about)
            self._shown[model, version] = state, level
            self.metrics.breaker(model, version, state)
            self.metrics.degraded(model, version, level > 0)
            self.metrics.predicted_wait(model, version, lane.predicted_wait())
            if model in self._models:
                self.metrics.weight(model, version, self._models[model].rollout.router.share(version))

    def _complain(self, trouble: str | None) -> None:
        """Once for every new trouble."""
        if trouble is not None and trouble != self._complaint:
            self._complaint = trouble
            self.event("quotas_not_kept", {"why": trouble})

    def about(self) -> dict[str, Any]:
        """For operators."""
        return {
            "tenants": {name: {"tokens_today": self.ledger.used(name)} for name in sorted(self.book.names)},
            "versions": {
                f"{model}@{version}": {
                    "breaker": lane.breaker.state,
                    "breaker_openings": lane.breaker.openings,
                    "degraded": lane.level,
                    "predicted_wait_s": round(lane.predicted_wait(), 3),
                    "tokens_per_s": lane.predictor.tokens_per_s,
                }
                for (model, version), lane in self.lanes.items()
            },
            "rolled_back": {
                f"{name}@{version}": why
                for name, model in self._models.items()
                for version, (_, why) in model.rollout.rolled_back.items()
            },
            "cache": {
                "entries": len(self.cache),
                "bytes": self.cache.bytes,
                "hits": self.cache.hits,
                "misses": self.cache.misses,
            },
        }
