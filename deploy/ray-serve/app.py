"""The service on a Ray cluster: each Ray replica is one whole service - gateway, engine workers, the same API.

PYTHONPATH=deploy/ray-serve serve run deploy/ray-serve/serve.yaml

Ray places replicas, adds and takes some by the number of requests under way, routes and replaces. Batches are the
engine's, which takes new requests at each step: Ray's @serve.batch has nothing to do here.
"""

from typing import Any

from ray import serve

from lightning_gpt.serving.app import Application
from lightning_gpt.serving.config import ServiceConfig, load_config, make_config
from lightning_gpt.serving.service import Service


class Hosted:
    """The service's ASGI application in somebody else's server: lifespan events start and end it.

    Args:
        config: host, port and drain are the server's affair and not used.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self.service: Service | None = None
        self._application: Application | None = None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._application(scope, receive, send)

    async def _live(self, receive: Any, send: Any) -> None:
        """Until the server says that it ends."""
        await receive()
        try:
            self.service = Service(self.config)
            self._application = Application(self.service)
            await self.service.start()
        except Exception as error:  # whatever it is, the server is to hear it
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.service.drain()
        await self.service.stop()
        await send({"type": "lifespan.shutdown.complete"})


class Gpt:
    """What Ray asks of a replica."""

    async def check_health(self) -> None:
        """Ray replaces a replica that fails this three times.

        Raises:
            RuntimeError: a model has no version with a worker.
        """
        for model in self.app.service.models.values():
            if not any(served.pool.ready for served in model.versions.values()):
                raise RuntimeError(f"no worker of {model.name} is ready")


def application(args: dict[str, Any]) -> serve.Application:
    """What serve.yaml's import_path names.

    Args:
        args: `config`, the path of a service.yaml that all nodes can read, or `service`, its content.

    Raises:
        ValueError: neither or both, or a setting is wrong.
    """
    if len(args.keys() & {"config", "service"}) != 1 or len(args) != 1:
        raise ValueError(f"args has {', '.join(args) or 'nothing'}: give config, a path, or service, its content")
    config = load_config(args["config"]) if "config" in args else make_config(args["service"], "args.service")

    def build() -> Hosted:
        return Hosted(config)

    return serve.deployment(serve.ingress(build)(Gpt), name="Gpt").bind()
