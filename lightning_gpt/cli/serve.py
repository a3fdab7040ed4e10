"""`lightning-gpt serve`: a model behind an HTTP API."""

import re
from pathlib import Path


def serve_command(
    model: str,
    name: str | None = None,
    host: str | None = None,
    port: int | None = None,
    tenants: str | None = None,
    replicas: int | None = None,
    standby: int | None = None,
    threads: int | None = None,
    max_running: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    draft: str | None = None,
) -> None:
    """Serve models over HTTP with OpenAI's API, a chat page at /, health at /health/live and /health/ready, metrics at
    /metrics and the description of it all at /docs.

    The gateway's process holds no model: each replica of each version is a process of its own, which is started anew
    when it dies. SIGTERM (or Ctrl-C) finishes the requests under way and ends.

    Args:
        model: model directory, checkpoint, run directory, adapter, or hub name; or a service.yaml with several models,
            versions, limits, logs (deploy/serve/README.md).
        name: what clients call the model; the directory's name unless set.
        host: address to listen on: 127.0.0.1 unless set, 0.0.0.0 = every one.
        port: 8000 unless set; 0 = any free one.
        tenants: YAML of API keys and limits (`lightning-gpt tenant`); without one no key is needed.
        replicas: worker processes of the model, 1 unless set.
        standby: loaded workers that take over at once when one dies.
        threads: of each worker's computation; one less than the cores, shared by the workers, unless set.
        max_running: requests computed side by side in a worker, 64 unless set.
        dtype: of the weights: auto, float32, bfloat16, float16.
        device: auto, cpu, cuda, cuda:1, ...
        draft: what guesses ahead: ngram, early_exit:N, or a smaller model.
    """
    try:
        import pydantic  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(f"the service needs {error.name}: pip install 'lightning_gpt[serve]'") from None
    from lightning_gpt.serving.config import NAME, load_config, make_config
    from lightning_gpt.serving.server import serve

    of_version = {
        "replicas": replicas,
        "standby": standby,
        "threads": threads,
        "max_running": max_running,
        "dtype": dtype,
        "device": device,
        "draft": draft,
    }
    given = {key: value for key, value in of_version.items() if value is not None}
    of_service = {"host": host, "port": port, "tenants": tenants}
    own = {key: value for key, value in of_service.items() if value is not None}
    if Path(model).suffix in (".yaml", ".yml"):
        if given or name is not None:
            wrong = next(iter(given), "name")
            raise ValueError(f"--{wrong} belongs to one model: set it in {model}")
        settings = load_config(model).model_copy(update=own)
    else:
        hub = NAME.fullmatch(model) and not Path(model).exists()
        called = name or (model if hub else re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).resolve().name).strip("-._"))
        settings = make_config({"models": [{"name": called, "versions": [{"path": model, **given}]}], **own}, "serve")
    serve(settings)
