"""All that is behind the HTTP API: the models, who may use them, and what is written down of it."""

from __future__ import annotations

import asyncio
import difflib
import gc
import os
import time
from typing import Any

from lightning_gpt.serving.admission import Admission
from lightning_gpt.serving.config import ModelConfig, ServiceConfig, VersionConfig
from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.http_protocol import canned_answer
from lightning_gpt.serving.json_logs import JsonLog, open_log_file
from lightning_gpt.serving.metrics import Metrics
from lightning_gpt.serving.record import RequestRecord
from lightning_gpt.serving.served_model import ServedModel, ServedVersion
from lightning_gpt.serving.tracing import open_tracer
from lightning_gpt.serving.worker_reports import WorkerReports

GC_THRESHOLDS = (20_000, 20, 50)
"""Requests make few cycles; the usual thresholds look for them fifty times a second, and P99 shows it."""
WARNINGS = ("worker_died", "worker_failed", "worker_silent", "rollback", "breaker")
"""Events that somebody should look at."""


class Service:
    """The models of a configuration.

    Args:
        config: service.yaml's.

    Raises:
        ValueError: the log cannot be written, or traces cannot be sent.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self.started = time.time()
        self.metrics = Metrics()
        self.log = JsonLog(open_log_file(config.log.path or "-"), config.log.requests, config.log.prompts)
        tracing = config.tracing
        self.tracer = None if tracing.endpoint is None else open_tracer(tracing.endpoint, tracing.sample)
        self.admission = Admission(config, self.metrics, self.event)
        self.models: dict[str, ServedModel] = {}
        self.open = 0
        """HTTP requests under way that the drain waits for."""
        self._shed_with: tuple[ApiError | None, bytes] = None, b""
        self.draining = False
        self.loaded = False

    async def start(self) -> None:
        """Loads all models.

        Raises:
            WorkerStartError: one of them cannot be.
        """
        self.event("started", {"models": [model.name for model in self.config.models], "pid": os.getpid()})
        for model in self.config.models:
            self.models[model.name] = self._served(model)
        try:
            await asyncio.gather(*(model.start(self.threads) for model in self.models.values()))
        except BaseException:
            await self.stop()
            raise
        self.admission.start(self)
        self.loaded = True
        gc.collect()
        gc.freeze()  # what lives from here to the end is not looked through again
        gc.set_threshold(*GC_THRESHOLDS)
        self.event("ready", {"seconds": round(time.time() - self.started, 3)})

    def _served(self, model: ModelConfig) -> ServedModel:
        return ServedModel(model, self.config, self.event, self._loaded, self._unloaded)

    def threads(self, version: VersionConfig) -> int:
        """Of each of a version's workers: one core is the gateway's, the workers share the others."""
        if version.threads is not None:
            return version.threads
        cores = len(version.cpus) if version.cpus is not None else max(len(os.sched_getaffinity(0)) - 1, 1)
        workers = sum(one.replicas for model in self.config.models for one in model.versions)
        return max(cores // workers, 1)

    def _loaded(self, served: ServedVersion) -> None:
        self.metrics.add(served.model, served.id)
        served.pool.on_stats = WorkerReports(self.metrics, served)
        self.admission.loaded(served)

    def _unloaded(self, served: ServedVersion) -> None:
        self.metrics.forget(served.model, served.id)
        self.admission.unloaded(served)

    def route(self, name: str | None, sticky: str) -> ServedVersion:
        """Which version answers a request.

        Args:
            name: model, or model@version; None = the only one.
            sticky: requests with the same go to the same version.

        Raises:
            ApiError: 404, no such model; 400, which one was not said.
        """
        if name is None:
            if len(self.models) > 1:
                raise ApiError(400, f"model is missing: give one of {', '.join(self.models)}", "model", "missing_field")
            return next(iter(self.models.values())).choose(sticky)
        model = self.models.get(name)
        if model is not None:
            return model.choose(sticky)
        base, at, version = name.rpartition("@")
        if at and base in self.models:
            return self.models[base].find(version)
        near = difflib.get_close_matches(name, self.models, n=1)
        hint = f", did you mean {near[0]!r}?" if near else f": give one of {', '.join(self.models)}"
        raise ApiError(404, f"there is no model {name[:80]!r}{hint}", "model", "model_not_found")

    @property
    def ready(self) -> bool:
        """Whether every model can be asked."""
        return self.loaded and not self.draining and self.admission.ready

    def turned_away(self, error: ApiError) -> None:
        """What came was refused before it was a request."""
        self.metrics.turned_away(error.status, error.code)

    def shed(self, url: bytes) -> bytes | None:
        """The whole answer to a request that comes while all like it are refused; None = it is to be read."""
        error = self.admission.shut(url)
        if error is None:
            return None
        if self._shed_with[0] is not error:
            self._shed_with = error, canned_answer(error)
        self.metrics.turned_away(error.status, error.code)
        self.metrics.rejected("", error.code)
        return self._shed_with[1]

    def finished(self, record: RequestRecord, prompt: str | None = None, answer: str | None = None) -> None:
        """A request is over: it is counted and logged, with its words where log.prompts asks for them."""
        record.finished = time.monotonic()
        self.metrics.finished(record)
        self.log.request(record, prompt, answer)
        if self.tracer is not None:
            self.tracer.request(record)
        self.admission.finished(record)

    def event(self, name: str, about: dict[str, Any]) -> None:
        """Something happened to the service itself."""
        self.log.event(name, "warning" if name in WARNINGS else "info", **about)

    async def drain(self) -> bool:
        """Takes no more requests and waits for those under way; False = the time was not enough."""
        self.draining = True
        self.event("draining", {"open": self.open})
        end = time.monotonic() + self.config.drain_s
        while self.open and time.monotonic() < end:
            await asyncio.sleep(0.01)
        return not self.open

    async def stop(self) -> None:
        """Ends all workers."""
        await self.admission.stop()
        pools = [served.pool for model in self.models.values() for served in model.versions.values()]
        await asyncio.gather(*(pool.stop() for pool in pools))
        self.event("stopped", {"open": self.open})
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)
        await asyncio.to_thread(self.log.close)
