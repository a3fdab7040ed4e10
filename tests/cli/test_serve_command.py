"""Mistakes of who starts the service: one line, before anything is loaded that need not be."""

import socket

import pytest
import yaml

from lightning_gpt.cli import main


def refused(capsys, *args, status=2):
    with pytest.raises(SystemExit) as caught:
        main(["serve", *map(str, args)])
    assert caught.value.code == status
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("lightning-gpt: error: ")
    return line


def service_yaml(tmp_path, **settings):
    path = tmp_path / "service.yaml"
    base = {"models": [{"name": "a", "versions": [{"path": "nowhere"}]}]}
    path.write_text(yaml.safe_dump({**base, **settings}))
    return path


def test_port_in_use(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(capsys, "nowhere", "--port", port)
    assert f"port={port}" in line and "Address already in use" in line and "--port" in line


def test_no_such_address(capsys):
    assert "host='no.such.host.invalid'" in refused(capsys, "nowhere", "--host", "no.such.host.invalid", "--port", 0)


def test_no_such_file(capsys, tmp_path):
    assert f"{tmp_path}/service.yaml is no file" in refused(capsys, tmp_path / "service.yaml")


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"limitz": {}}, "limitz is no setting, did you mean limits?"),
        ({"limits": {"max_queu": 3}}, "limits.max_queu is no setting, did you mean max_queue?"),
        ({"limits": {"max_queue": 0}}, "limits.max_queue=0: input should be greater than or equal to 1"),
        ({"limits": {"timeout_s": "soon"}}, "limits.timeout_s='soon'"),
        ({"breaker": {"probs": 3}}, "breaker.probs is no setting, did you mean probes?"),
        ({"breaker": {"window_s": 0}}, "breaker: breaker window_s=0: give at least 1"),
        ({"models": []}, "models"),
        ({"models": [{"name": "a b", "versions": [{"path": "x"}]}]}, "models.0.name='a b'"),
        ({"models": [{"name": "a", "versions": [{"path": "x"}, {"path": "y"}]}]}, "the id 'v1' twice"),
        ({"models": [{"name": "a", "versions": [{"path": "x", "weight": 0}]}]}, "weight above 0"),
        ({"models": [{"name": "a", "versions": [{"path": "x", "canary": True}]}]}, "are canaries"),
        ({"models": [{"name": "a", "fallback": "b", "versions": [{"path": "x"}]}]}, "fallback='b' of a is no model"),
        ({"models": [{"name": "a", "versions": [{"id": "v1"}]}]}, "models.0.versions.0.path is missing"),
    ],
)
def test_a_mistake_in_the_configuration(capsys, tmp_path, settings, said):
    path = service_yaml(tmp_path, **settings)
    line = refused(capsys, path)
    assert said in line and str(path) in line


def test_no_yaml(capsys, tmp_path):
    path = tmp_path / "service.yaml"
    path.write_text("models: [")
    assert "is no YAML" in refused(capsys, path)
    path.write_text("- a")
    assert "must hold a mapping" in refused(capsys, path)


def test_options_of_one_model_with_a_file_of_several(capsys, tmp_path):
    assert "replicas belongs to one model" in refused(capsys, service_yaml(tmp_path), "--replicas", 2)


def test_a_model_that_is_not_there(capsys):
    line = refused(capsys, "./nowhere/model", "--port", 0, status=1)
    assert "nowhere/model does not exist" in line
