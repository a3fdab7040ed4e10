"""Asks a running service."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from lightning_gpt.learning.exercise import Wrong


def ask(url: str, body: dict[str, Any] | None = None, key: str | None = None) -> tuple[int, Any]:
    """(status, JSON or text) of a GET, or of a POST where there is a body.

    Raises:
        Wrong: nothing answers there.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    except (OSError, ValueError) as error:
        raise Wrong(f"{url}: nothing answers ({getattr(error, 'reason', error)})") from None
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text.decode(errors="replace")


def completion(url: str, key: str | None = None) -> str:
    """What the service's first model continues "To be" with.

    Raises:
        Wrong: it has no model, or does not answer as OpenAI's API does.
    """
    status, models = ask(f"{url}/v1/models", key=key)
    names = [one.get("id") for one in models.get("data", [])] if isinstance(models, dict) else []
    if status != 200 or not names:
        raise Wrong(f"{url}/v1/models says {status} and names no model")
    status, body = ask(f"{url}/v1/completions", {"model": names[0], "prompt": "To be", "max_tokens": 8}, key)
    try:
        text = body["choices"][0]["text"]
    except (KeyError, IndexError, TypeError):
        raise Wrong(f"{url}/v1/completions says {status}: {str(body)[:120]}") from None
    if status != 200 or not isinstance(text, str) or not text:
        raise Wrong(f"{url}/v1/completions says {status} with no text")
    return text
