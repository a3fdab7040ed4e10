import pytest
from service_process import ServiceProcess, small_model


class Clock:
    """Time that a test moves by hand."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    """A model with random weights and byte tokens, of 4096 positions."""
    return small_model(tmp_path_factory.mktemp("small") / "tiny")


@pytest.fixture(scope="session")
def service(tmp_path_factory, model_directory):
    """A service with one model, "tiny", without tenants; shared by tests that leave it as it is."""
    settings = {"models": [{"name": "tiny", "versions": [{"path": str(model_directory), "threads": 1}]}]}
    running = ServiceProcess(tmp_path_factory.mktemp("service"), settings)
    yield running
    running.close()
