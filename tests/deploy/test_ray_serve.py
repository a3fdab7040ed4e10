"""deploy/ray-serve/: the service in Ray Serve's replicas gives the answers that it gives alone."""

import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lightning_gpt.serving.config import make_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "ray-serve"
STARTED_S = 240
"""Ray and two processes that import torch, on a busy machine."""


def loaded(path: Path, name: str):
    """A file that is in no package."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_serve_yaml_is_what_ray_and_the_service_read():
    schema = pytest.importorskip("ray.serve.schema")
    content = yaml.safe_load((FOLDER / "serve.yaml").read_text())
    deployed = schema.ServeDeploySchema.model_validate(content)
    (application,) = deployed.applications
    assert application.import_path == "app:application"
    settings = make_config(application.args["service"])
    (deployment,) = application.deployments
    assert deployment.name == "Gpt"
    assert deployment.graceful_shutdown_timeout_s >= settings.drain_s
    assert deployed.http_options.request_timeout_s > settings.limits.timeout_s
    version = settings.models[0].versions[0]
    assert deployment.max_ongoing_requests > version.max_running
    assert deployment.ray_actor_options.num_cpus == version.threads * version.replicas + 1


def test_wrong_arguments_are_told_in_a_line():
    pytest.importorskip("ray.serve")
    app = loaded(FOLDER / "app.py", "deploy_ray_app")
    for args in ({}, {"config": "a", "service": {}}, {"serivce": {}}):
        with pytest.raises(ValueError, match="give config, a path, or service, its content"):
            app.application(args)
    with pytest.raises(ValueError, match=r"args\.service: modles is no setting, did you mean models"):
        app.application({"service": {"modles": [], "models": [{"name": "a", "versions": [{"path": "x"}]}]}})


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ask(port: int, path: str, body: dict | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    words = json.dumps(body) if body else None
    connection.request("POST" if body else "GET", path, words, {"content-type": "application/json"})
    answer = connection.getresponse()
    try:
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.slow
def test_the_same_answers_with_ray_and_without(tmp_path):
    pytest.importorskip("ray.serve")
    helper = loaded(ROOT / "tests" / "serving" / "service_process.py", "ray_service_process")
    model = helper.small_model(tmp_path / "tiny", context=128)
    service = {"models": [{"name": "tiny", "versions": [{"path": str(model), "threads": 1}]}]}
    content = yaml.safe_load((FOLDER / "serve.yaml").read_text())
    port = free_port()
    content["http_options"] |= {"host": "127.0.0.1", "port": port}
    content["applications"][0]["args"]["service"] = service
    content["applications"][0]["deployments"][0]["ray_actor_options"]["num_cpus"] = 1
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(content))
    paths = f"{FOLDER}{os.pathsep}{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_TMPDIR": "/tmp/ray_serve_test"}
    words = [str(Path(sys.executable).with_name("serve")), "run", str(tmp_path / "serve.yaml")]
    said = tmp_path / "ray.txt"
    with said.open("wb") as output:
        pipes = {"stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(words, env=environment, cwd=tmp_path, **pipes)
    try:
        end = time.monotonic() + STARTED_S
        while True:
            try:
                if ask(port, "/v1/models")[0] == 200:
                    break
            except OSError:
                pass
            assert process.poll() is None and time.monotonic() < end, said.read_text()[-3000:]
            time.sleep(0.5)
        alone = helper.ServiceProcess(tmp_path, service)
        try:
            urls = [f"http://127.0.0.1:{port}", alone.url]
            command = [
                sys.executable,
                ROOT / "deploy" / "parity.py",
                *urls,
                "--tolerance",
                "1e-4",
                "--max-tokens",
                "16",
            ]
            done = subprocess.run(command, capture_output=True, text=True)
        finally:
            alone.close()
        assert done.returncode == 0, done.stdout + done.stderr
        body = {"model": "tiny", "prompt": "a", "max_tokens": 4, "temperature": 0, "stream": True}
        status, events = ask(port, "/v1/completions", body)
        assert status == 200 and events.count(b"data: ") >= 2 and events.endswith(b"data: [DONE]\n\n")
        status, refused = ask(port, "/v1/completions", {"model": "nobody", "prompt": "a"})
        assert status == 404 and json.loads(refused)["error"]["code"] == "model_not_found"
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
