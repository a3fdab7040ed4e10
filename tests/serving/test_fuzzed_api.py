"""Requests that schemathesis makes from /openapi.json, sent to the real service: no 5xx, every answer as described."""

import hypothesis
import pytest
import schemathesis
from fastapi import FastAPI
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from service_process import ServiceProcess, small_model

from lightning_gpt.serving.description import describe

EXCLUDED = ("positive_data_acceptance", "unsupported_method")
"""What fits its schema may still be refused: a context is full, a template lacks a role, two fields contradict each
other. Methods are test_hostile_clients.py's."""


def described():
    """(method, path) of all that the service describes."""
    app = FastAPI()
    describe(app)
    return [(method, path) for path, methods in app.openapi()["paths"].items() for method in methods]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    path = str(small_model(folder / "model", context=64))
    models = [{"name": "tiny", "chat_template": "plain", "versions": [{"path": path, "threads": 1}]}]
    service = ServiceProcess(folder, {"models": models, "limits": {"max_n": 2, "max_tokens": 8}})
    yield service
    service.close()
    assert "Traceback" not in service.output.read_text() + service.log.read_text()


@pytest.fixture(scope="module")
def api(service):
    return schemathesis.openapi.from_url(f"{service.url}openapi.json")


def fuzz(operation, examples):
    """Requests that fit the description, and as many that do not."""
    ask_all(operation, examples if operation.body or operation.path_parameters else 1, GenerationMode.POSITIVE)
    if operation.body:  # a text in a path always fits
        ask_all(operation, examples, GenerationMode.NEGATIVE)


def ask_all(operation, examples, mode):
    excluded = [CHECKS.get_one(name) for name in EXCLUDED]

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and case.body.get("model") is not None:
            case.body["model"] = "tiny"  # random names lead no further than 404
        case.call_and_validate(timeout=60, excluded_checks=excluded)

    ask()


@pytest.mark.parametrize(("method", "path"), described())
def test_every_answer_is_as_described(service, api, method, path):
    fuzz(api[path][method], 12)
    assert service.ready()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), described())
def test_every_answer_is_as_described_at_length(service, api, method, path):
    fuzz(api[path][method], 500)
    assert service.ready()
