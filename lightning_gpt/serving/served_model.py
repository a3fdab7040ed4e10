"""A model as clients name it: its versions, and which of them answers whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from lightning_gpt.serving.canary import Rollout, VersionRouter
from lightning_gpt.serving.codec import Codec
from lightning_gpt.serving.config import ModelConfig, ServiceConfig, VersionConfig
from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.pool import Event, Pool


class ServedVersion:
    """A version that is loaded: its workers, and its tokenizer in the gateway."""

    def __init__(self, pool: Pool, codec: Codec) -> None:
        self.pool, self.codec = pool, codec
        self.id = pool.version.id
        self.model = pool.model
        self.block_size = pool.hello.block_size


class ServedModel:
    """Its versions, by weight.

    Args:
        config: of the model.
        service: of all.
        event: told what happens.
        loaded, unloaded: called with a version that begins or ends to serve.
    """

    def __init__(
        self,
        config: ModelConfig,
        service: ServiceConfig,
        event: Event,
        loaded: Callable[[ServedVersion], None],
        unloaded: Callable[[ServedVersion], None],
    ) -> None:
        self.config, self.name = config, config.name
        self.versions: dict[str, ServedVersion] = {}
        self._service, self._event, self._loaded, self._unloaded = service, event, loaded, unloaded
        stable = next(version for version in config.versions if not version.canary)
        self.rollout = Rollout(VersionRouter({}, config.name), stable.id, service.canary)

    async def start(self, threads: Callable[[VersionConfig], int]) -> None:
        """Loads all versions.

        Raises:
            WorkerStartError: one of them cannot be.
        """
        await asyncio.gather(*(self.load(version, threads(version)) for version in self.config.versions))

    async def load(self, version: VersionConfig, threads: int) -> ServedVersion:
        """Adds a version, which gets its share of the traffic when it is ready.

        Raises:
            ApiError: 409, there is one with its id.
            WorkerStartError: it cannot be loaded.
        """
        if version.id in self.versions:
            raise ApiError(409, f"{self.name} has a version {version.id!r}: unload it, or choose another id", "id")
        template = self.config.chat_template
        pool = Pool(self.name, version, template, self._service, threads, self._event)
        hello = await pool.start()
        served = self.versions[version.id] = ServedVersion(pool, Codec(hello, template))
        self.rollout.set_weight(version.id, version.weight)
        self._loaded(served)
        return served

    async def unload(self, version: str, drain_s: float) -> None:
        """Takes a version out of the traffic, waits for what it has under way, and ends its workers.

        Raises:
            ApiError: 404, there is none; 409, nothing would be left.
        """
        served = self.find(version)
        left = [one for one in self.versions if one != version and self.rollout.router.share(one)]
        if not left:
            raise ApiError(409, f"{version!r} is all that serves {self.name}: load another, or give it a weight", "id")
        self.rollout.remove(version)
        del self.versions[version]
        await served.pool.drain(drain_s)
        await served.pool.stop()
        self._unloaded(served)

    def find(self, version: str) -> ServedVersion:
        """A version by its id.

        Raises:
            ApiError: 404, there is none.
        """
        served = self.versions.get(version)
        if served is None:
            raise ApiError(
                404,
                f"{self.name} has no version {version[:80]!r}, but {', '.join(self.versions)}",
                "model",
                "model_not_found",
            )
        return served

    def choose(self, sticky: str) -> ServedVersion:
        """Who answers: always the same for one sticky key, while weights stay and workers live.

        Raises:
            ApiError: 503, nobody does.
        """
        ready = [name for name, served in self.versions.items() if served.pool.ready]
        chosen = self.rollout.router.route(sticky, ready or list(self.versions))
        if chosen is None:
            raise ApiError(
                503, f"no version of {self.name} is loaded: try again", "model", "no_worker", retry_after_s=1
            )
        return self.versions[chosen]

    def about(self) -> dict[str, Any]:
        """What GET /v1/models says of it."""
        first = next(iter(self.versions.values()))
        return {
            "id": self.name,
            "object": "model",
            "owned_by": "lightning_gpt",
            "max_model_len": first.block_size,
            "parameters": first.pool.hello.parameters,
            "chat": first.pool.hello.chat or self.config.chat_template is not None,
            "versions": [
                {
                    "id": served.id,
                    "share": round(self.rollout.router.share(served.id), 4),
                    "ready": served.pool.ready,
                    "parameters": served.pool.hello.parameters,
                    "rolled_back": served.id in self.rollout.rolled_back,
                }
                for served in self.versions.values()
            ],
        }
