"""Who may ask for what now, in the order in which it costs least to refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_gpt.serving.config import ServiceConfig
from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.exchange import Exchange
from lightning_gpt.serving.metrics import Metrics
from lightning_gpt.serving.pool import Event
from lightning_gpt.serving.record import RequestRecord
from lightning_gpt.serving.tenants import OPEN, Tenant

if TYPE_CHECKING:
    from lightning_gpt.serving.generation import Job
    from lightning_gpt.serving.served_model import ServedVersion
    from lightning_gpt.serving.service import Service


class Ticket:
    """The right to one request."""

    def settle(self, prompt_tokens: int, new_tokens: int, error: BaseException | None) -> None:
        """It is over.

        Args:
            prompt_tokens: that were read.
            new_tokens: that were made.
            error: what it ended with.
        """


class Admission:
    """Tenants, limits, breakers, canaries.

    Args:
        config: service.yaml's.
        metrics: told of refusals.
        event: told of changes.
    """

    def __init__(self, config: ServiceConfig, metrics: Metrics, event: Event) -> None:
        self.config, self.metrics, self.event = config, metrics, event
        self.ready = True

    def start(self, service: Service) -> None:
        """Begins to watch files."""

    async def stop(self) -> None:
        """Writes down what must be kept."""

    def loaded(self, served: ServedVersion) -> None:
        """A version begins to serve."""

    def unloaded(self, served: ServedVersion) -> None:
        """A version is gone."""

    def identify(self, exchange: Exchange) -> Tenant:
        """Whose request it is; before its body is read.

        Raises:
            ApiError: 401, 429.
        """
        return OPEN

    def choose(self, service: Service, tenant: Tenant, name: str | None, sticky: str) -> ServedVersion:
        """Which version answers a tenant's request.

        Raises:
            ApiError: 400, 403, 404, 503.
        """
        return service.route(name, sticky)

    def most_tokens(self, served: ServedVersion) -> int | None:
        """New tokens that a request may ask for while answers are shortened; None = they are not."""
        return None

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
            ApiError: 403, 429, 503.
        """
        return Ticket()

    def kept_answer(self, exchange: Exchange, job: Job, tenant: Tenant) -> bytes | None:
        """The answer, if the same was asked before."""
        return None

    def keep_answer(self, exchange: Exchange, job: Job, tenant: Tenant, body: bytes) -> None:
        """Keeps an answer for whoever asks the same."""

    def refused(self, exchange: Exchange, error: ApiError) -> None:
        """A request was refused, here or elsewhere."""
        if error.status in (401, 429, 503, 504, 413) and error.code is not None:
            self.metrics.rejected(exchange.record.model, error.code)

    def finished(self, record: RequestRecord) -> None:
        """A request is over."""

    def about(self) -> dict[str, Any]:
        """For operators."""
        return {}
