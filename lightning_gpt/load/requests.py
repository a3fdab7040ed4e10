"""Requests as the bytes that go over the wire, put together from parts that are made beforehand."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_gpt.load.mixture import Mixture
from lightning_gpt.load.prompts import Prompt
from lightning_gpt.load.settings import LoadSettings
from lightning_gpt.load.target import Target

CYCLE = 100_000
"""Requests that a closed loop draws; after them it begins anew."""


@dataclass(frozen=True)
class Draws:
    """What each request asks: choices from the seed, in arrays that Python reads fast."""

    prompt: array
    max_tokens: array
    stream: array
    tenant: array

    @classmethod
    def of(cls, settings: LoadSettings, prompts: int, count: int) -> Draws:
        """Draws `count` requests. Each prompt is asked about equally often: they come in shuffled rounds."""
        rng = np.random.default_rng([settings.seed, 3])
        rounds = [rng.permutation(prompts) for _ in range(-(-count // prompts))]
        return cls(
            column("i", np.concatenate([np.empty(0, np.int32), *rounds])[:count]),
            column("i", Mixture.parse("max_tokens", settings.max_tokens).draw(rng, count)),
            column("b", rng.random(count) < settings.stream),
            column("B", rng.integers(max(len(settings.api_keys), 1), size=count)),
        )


def column(code: str, values: np.ndarray) -> array:
    """As array of type `code`."""
    return array(code, values.astype(np.dtype(code)).tobytes())


class Bodies:
    """Makes the bytes of requests.

    Args:
        settings: what every request has in common.
        target: the server.
        model: name that the server knows.
        prompts: what is asked.

    Raises:
        ValueError: a prompt is a talk and the endpoint takes texts.
    """

    def __init__(self, settings: LoadSettings, target: Target, model: str, prompts: list[Prompt]) -> None:
        self.chat = settings.endpoint == "chat"
        if not self.chat and any(not isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"prompts={settings.prompts} holds talks (messages): give --endpoint chat")
        common: dict[str, Any] = {"model": model, "temperature": settings.temperature}
        if settings.sampling_seed is not None:
            common["seed"] = settings.sampling_seed
        if settings.ignore_eos:
            common["ignore_eos"] = True
        self._bodies = [self._body(common, prompt) for prompt in prompts]
        path = target.path + ("/chat/completions" if self.chat else "/completions")
        extra = [] if settings.request_timeout_s is None else [f"X-Request-Timeout: {settings.request_timeout_s:g}"]
        self._heads = [
            head("POST", path, target, key, ["Content-Type: application/json", *extra]) + b"Content-Length: "
            for key in settings.api_keys or ("",)
        ]
        self._tails: dict[tuple[int, bool], bytes] = {}

    def _body(self, common: dict[str, Any], prompt: Prompt) -> bytes:
        if self.chat:
            asked: dict[str, Any] = {
                "messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            }
        else:
            asked = {"prompt": prompt}
        return json.dumps(common | asked, ensure_ascii=False).encode()[:-1]

    def payload(self, prompt: int, max_tokens: int, stream: bool, tenant: int) -> bytes:
        """A whole request, header and body."""
        tail = self._tails.get((max_tokens, stream))
        if tail is None:
            more = ', "stream": true, "stream_options": {"include_usage": true}' if stream else ""
            tail = self._tails[max_tokens, stream] = f', "max_tokens": {max_tokens}{more}}}'.encode()
        body = self._bodies[prompt]
        return b"%b%d\r\n\r\n%b%b" % (self._heads[tenant], len(body) + len(tail), body, tail)


def head(method: str, path: str, target: Target, key: str, lines: list[str]) -> bytes:
    """Request line and header lines, without the empty line that ends them."""
    all_lines = [f"{method} {path} HTTP/1.1", f"Host: {target.host}", "Accept: */*", "User-Agent: lightning-gpt-load"]
    all_lines += [f"Authorization: Bearer {key}"] if key else []
    return "".join(f"{line}\r\n" for line in [*all_lines, *lines]).encode("latin-1")
