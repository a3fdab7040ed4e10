"""Versions that come and go while the service runs, an adapter among them."""

import threading

import pytest
import torch
import yaml
from service_process import ServiceProcess, small_model

from lightning_gpt.hub import open_model
from lightning_gpt.hub.adapters import LoRA, add_adapters, base_fingerprint, save_adapter
from lightning_gpt.inference import SamplingConfig, generate_text
from lightning_gpt.serving.tenants import new_key

KEY, HASH = new_key()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """Directory of a base, directory of an adapter of it that changes every text."""
    place = tmp_path_factory.mktemp("versions")
    base = small_model(place / "base", context=256)
    net, _ = open_model(base)
    mark = base_fingerprint(net)
    add_adapters(net, LoRA(rank=2))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.5)
    save_adapter(place / "adapter", net, LoRA(rank=2), str(base), mark)
    return base, place / "adapter"


@pytest.fixture(scope="module")
def service(tmp_path_factory, adapter):
    folder = tmp_path_factory.mktemp("admin")
    tenants = {"tenants": [{"name": "boss", "key_hashes": [HASH], "admin": True}], "anonymous": {}}
    (folder / "tenants.yaml").write_text(yaml.safe_dump(tenants))
    versions = [{"id": "base", "path": str(adapter[0]), "threads": 1}]
    models = [{"name": "tiny", "versions": versions}]
    running = ServiceProcess(folder, {"models": models, "tenants": str(folder / "tenants.yaml")})
    yield running
    running.close()


def admin(service, method, path, body=None, key=KEY):
    return service.ask(method, path, body, authorization=f"Bearer {key}")


def text(service, model, **more):
    asked = {"model": model, "prompt": "once", "max_tokens": 24, "temperature": 0, **more}
    status, answer = service.post("/v1/completions", asked)
    assert status == 200, answer
    return answer["choices"][0]["text"], answer["system_fingerprint"]


def expected(directory):
    net, tokenizer = open_model(directory)
    pieces = generate_text(net, tokenizer, ["once"], 24, SamplingConfig(temperature=0))
    return "".join(piece.text for piece in pieces)


def test_only_admins_change_versions(service):
    body = {"id": "v2", "path": "nowhere"}
    assert service.ask("POST", "/admin/models/tiny/versions", body)[0] == 403
    assert admin(service, "POST", "/admin/models/tiny/versions", body, key="lgpt-wrong")[0] == 401


def test_mistakes_are_named_and_nothing_changes(service):
    def refused(status, said, method, path, body=None):
        found, answer = admin(service, method, path, body)
        assert found == status and said in answer["error"]["message"], answer

    base = "/admin/models/tiny/versions"
    refused(404, "no model 'other'", "POST", "/admin/models/other/versions", {"id": "a", "path": "b"})
    refused(400, "path is missing", "POST", base, {"id": "v2"})
    refused(400, "did you mean weight?", "POST", base, {"id": "v2", "path": "x", "wieght": 1})
    refused(400, "does not exist", "POST", base, {"id": "v2", "path": "./no/where"})
    refused(409, "has a version 'base'", "POST", base, {"id": "base", "path": "x"})
    refused(409, "all that serves tiny", "DELETE", f"{base}/base")
    refused(404, "no version 'v9'", "PUT", f"{base}/v9", {"weight": 1})
    refused(400, "weight", "PUT", f"{base}/base", {"weight": -1})
    refused(404, "nothing at", "GET", "/admin/nothing")
    status, found = admin(service, "GET", "/admin/status")
    assert status == 200 and list(found["models"]["tiny"]) == ["base"]


def test_an_adapter_is_loaded_weighed_and_unloaded_under_load(service, adapter):
    base, path = adapter
    plain, tuned = expected(base), expected(path)
    assert plain != tuned and text(service, "tiny") == (plain, "base")
    status, about = admin(
        service, "POST", "/admin/models/tiny/versions", {"id": "tuned", "path": str(path), "weight": 0}
    )
    assert status == 200 and [one["share"] for one in about["versions"]] == [1.0, 0.0]
    assert text(service, "tiny@tuned") == (tuned, "tuned") and text(service, "tiny") == (plain, "base")

    assert admin(service, "PUT", "/admin/models/tiny/versions/tuned", {"weight": 1.0})[0] == 200
    first = {user: text(service, "tiny", user=user) for user in map(str, range(40))}
    assert {version for _, version in first.values()} == {"base", "tuned"}
    assert all(found == {"base": plain, "tuned": tuned}[version] for found, version in first.values())
    assert {user: text(service, "tiny", user=user) for user in first} == first, "a client stays with its version"

    answers, going = [], threading.Event()

    def keep_asking():
        while not going.is_set():
            answers.append(text(service, "tiny"))

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    status, about = admin(service, "DELETE", "/admin/models/tiny/versions/tuned")
    going.set()
    for thread in threads:
        thread.join()
    assert status == 200 and [one["id"] for one in about["versions"]] == ["base"]
    assert len(answers) >= 4 and set(answers) <= {(plain, "base"), (tuned, "tuned")}
    assert text(service, "tiny") == (plain, "base")
    assert service.post("/v1/completions", {"model": "tiny@tuned", "prompt": "a"})[0] == 404
