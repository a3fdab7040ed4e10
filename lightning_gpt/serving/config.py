"""service.yaml: what the service serves, to whom, and how much it takes on.

Read with `load_config`; every mistake is one line that names the field, the value and the mend.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from lightning_gpt.serving.breaker import BreakerConfig
from lightning_gpt.serving.canary_judge import JudgeConfig
from lightning_gpt.serving.degradation import DegradationConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


def _named(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("must be letters, digits, and . _ / - between them")
    return value


Name = Annotated[str, AfterValidator(_named)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)


class VersionConfig(_Settings):
    """One version of a model, or the model with an adapter merged in."""

    id: Name = "v1"
    path: str
    """Model directory, checkpoint, run directory, adapter directory (it names its base), or hub name."""
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Share of the model's traffic, relative to the other versions'. 0 = only those who ask for name@id."""
    canary: bool = False
    """Watched against the versions that are no canary, and taken out of the traffic when it does worse."""
    replicas: int = Field(1, ge=1, le=64)
    """Worker processes that share the work."""
    standby: int = Field(0, ge=0, le=8)
    """Loaded workers that take over at once when one dies."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; auto = bfloat16 on GPUs that have it, else as stored."""
    device: str = "auto"
    """auto = the GPU where there is one, cpu, cuda, cuda:1, ..."""
    threads: int | None = Field(None, ge=1)
    """Of a worker's computation on a CPU; null = one less than the machine has, shared by all workers."""
    cpus: list[int] | None = None
    """Cores that the workers may use (Linux); null = any."""
    max_running: int = Field(64, ge=1)
    """Requests computed side by side in one worker."""
    token_budget: int = Field(1024, ge=1)
    """Tokens that a step reads at most."""
    cache_bytes: int | None = Field(None, ge=1)
    """Memory for keys and values of one worker; null = as the engine chooses."""
    cache_dtype: Literal["float32", "bfloat16", "float16", "int8", "int4"] | None = None
    """Of keys and values; null = what is read fastest."""
    draft: str | None = None
    """What guesses ahead: ngram, early_exit:N, or a smaller model."""

    @model_validator(mode="after")
    def _budget(self) -> VersionConfig:
        if self.token_budget < self.max_running:
            raise ValueError(f"token_budget={self.token_budget} must be at least max_running={self.max_running}")
        return self


class ModelConfig(_Settings):
    """What clients call a model."""

    name: Name
    versions: list[VersionConfig] = Field(min_length=1)
    fallback: Name | None = None
    """Another model of the service that answers for this one when it is overloaded or broken."""
    chat_template: str | None = None
    """Jinja source, chatml or plain; null = the model's own."""

    @model_validator(mode="after")
    def _ids(self) -> ModelConfig:
        ids = [version.id for version in self.versions]
        if twice := {name for name in ids if ids.count(name) > 1}:
            raise ValueError(f"versions have the id {sorted(twice)[0]!r} twice: give each its own")
        if not any(version.weight for version in self.versions):
            raise ValueError(f"no version of {self.name} has a weight above 0: nobody would reach it by its name")
        if all(version.canary for version in self.versions):
            raise ValueError(f"all versions of {self.name} are canaries: one must be what they are compared with")
        return self


class LimitsConfig(_Settings):
    """What one request may ask for, and how many may wait."""

    max_body_bytes: int = Field(1 << 20, ge=1024)
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Null = what the model's context holds."""
    max_tokens: int | None = Field(None, ge=1)
    """New tokens a request; null = what the context leaves."""
    default_max_tokens: int = Field(16, ge=1)
    """Of a completion that does not say; a chat's is what the context leaves, at most default_chat_tokens."""
    default_chat_tokens: int = Field(512, ge=1)
    max_n: int = Field(16, ge=1)
    """Texts a request."""
    max_queue: int = Field(2048, ge=1)
    """Requests that wait for a model; more are refused."""
    timeout_s: Positive = 60.0
    """Deadline of a request that sets none by X-Request-Timeout; its own may not be longer."""
    max_wait_s: Positive | None = None
    """Requests that would wait longer than this are refused at once; null = those that would miss their deadline."""
    max_connections: int = Field(4096, ge=1)
    header_timeout_s: Positive = 10.0
    """For all of a request's headers to arrive."""
    body_timeout_s: Positive = 30.0
    """For all of its body."""
    keep_alive_s: Positive = 75.0


class CacheConfig(_Settings):
    """Answers to deterministic requests, kept."""

    max_bytes: int = Field(0, ge=0)
    """0 = none are."""
    ttl_s: Positive = 300.0


class LogConfig(_Settings):
    """JSON lines."""

    path: str | None = None
    """File they are appended to; null = standard output."""
    requests: Literal["all", "errors"] | Share = "all"
    """Which are logged: all, those that failed, or these and a share of the others."""
    prompts: bool = False
    """Whether prompts and answers are logged. They are somebody's words: leave it off."""


class TracingConfig(_Settings):
    """OpenTelemetry."""

    endpoint: str | None = None
    """OTLP over HTTP, such as http://localhost:4318/v1/traces; null = no traces."""
    sample: Share = 1.0


class ServiceConfig(_Settings):
    """All of service.yaml."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    """0 = any free one."""
    models: list[ModelConfig] = Field(min_length=1)
    tenants: str | None = None
    """YAML of API keys and their limits (`lightning-gpt tenant`), read again when it changes; null = no keys needed."""
    quotas: str | None = None
    """File where the day's used tokens are kept over a restart; null = beside `tenants`."""
    limits: LimitsConfig = LimitsConfig()
    breaker: BreakerConfig = BreakerConfig()
    degradation: DegradationConfig | None = None
    """When answers become shorter, then come from a model's fallback; null = never."""
    degraded_max_tokens: int = Field(64, ge=1)
    """New tokens a request while answers are shorter."""
    canary: JudgeConfig = JudgeConfig()
    """When a canary is taken out of the traffic."""
    cache: CacheConfig = CacheConfig()
    log: LogConfig = LogConfig()
    tracing: TracingConfig = TracingConfig()
    cpus: list[int] | None = None
    """Cores that the gateway may use (Linux); null = any."""
    heartbeat_s: Positive = 30.0
    """A worker that shows no life for so long is killed and started anew."""
    retries: int = Field(2, ge=0)
    """Times that a request of which nothing was sent is given to another worker when its own has died."""
    drain_s: Positive = 30.0
    """After SIGTERM, for requests under way."""
    drain_delay_s: float = Field(0.0, ge=0, allow_inf_nan=False)
    """After SIGTERM, new connections are still taken for so long, while /health/ready says no: until a load balancer
    has heard of it."""
    trust_proxy: bool = False
    """Whether X-Forwarded-For names the client: only behind a proxy that sets it."""

    @model_validator(mode="after")
    def _names(self) -> ServiceConfig:
        names = [model.name for model in self.models]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"models have the name {sorted(twice)[0]!r} twice: give each its own")
        for model in self.models:
            if model.fallback is not None and model.fallback not in names:
                raise ValueError(f"fallback={model.fallback!r} of {model.name} is no model here: {', '.join(names)}")
            if model.fallback == model.name:
                raise ValueError(f"fallback={model.fallback!r} is the model itself: name another, or none")
        return self


def load_config(path: str | Path) -> ServiceConfig:
    """Reads and checks a service.yaml.

    Raises:
        FileNotFoundError, ValueError: one line: file, field, value, mend.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"{path} is no file: name a service.yaml") from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold a mapping that begins with `models:`")
    return make_config(raw, str(path))


def make_config(raw: dict[str, Any], source: str = "the configuration") -> ServiceConfig:
    """Checks settings that are given as a mapping.

    Raises:
        ValueError: one line: source, field, value, mend.
    """
    try:
        return ServiceConfig.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{source}: {explain(error, ServiceConfig)}") from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistake in one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    given = first.get("input")
    shown = "" if isinstance(given, dict | list | BaseModel) or first["type"] == "missing" else f"={given!r}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        near = difflib.get_close_matches(str(first["loc"][-1]), _fields(model, first["loc"][:-1]), n=1)
        return f"{where} is no setting" + (f", did you mean {near[0]}?" if near else "")
    if not where:
        return message
    return f"{where}{shown}: {message[:1].lower()}{message[1:]}"


def _fields(model: type[BaseModel], place: tuple[str | int, ...]) -> list[str]:
    """Names of the settings at a place."""
    for part in place:
        if isinstance(part, int):
            continue
        annotation: Any = model.model_fields[part].annotation
        for inner in (annotation, *getattr(annotation, "__args__", ())):
            if is_dataclass(inner):
                return [one.name for one in fields(inner)]
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                model = inner
    return list(model.model_fields)
