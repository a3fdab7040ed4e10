"""Limits, quotas, breaker and cache over real HTTP, with real workers."""

import http.client
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from service_process import ServiceProcess

from lightning_gpt.serving.tenants import new_key

KEYS = {name: new_key() for name in ("boss", "few", "daily", "narrow", "single", "late", "cached", "leaver")}
LIMITS = {
    "boss": {"admin": True},
    "few": {"requests_per_minute": 2},
    "daily": {"tokens_per_day": 20},
    "narrow": {"models": ["tiny"]},
    "single": {"max_parallel": 1},
    "leaver": {},
    "cached": {"tokens_per_minute": 60},
}


def tenants(**changes):
    limits = {**LIMITS, **changes}
    return {"tenants": [{"name": name, "key_hashes": [KEYS[name][1]], **limit} for name, limit in limits.items()]}


class Client:
    def __init__(self, folder, model):
        self.folder = folder
        self.write(tenants())
        versions = [{"path": str(model), "threads": 1}]
        slow = [{"path": str(model), "threads": 1, "max_running": 1}]
        settings = {
            "models": [
                {"name": "tiny", "versions": versions},
                {"name": "slow", "versions": slow, "fallback": "tiny"},
            ],
            "tenants": str(folder / "tenants.yaml"),
            "limits": {"max_queue": 20, "timeout_s": 60},
            "breaker": {"max_in_a_row": 1, "cool_down_s": 1.0, "successes": 1, "probes": 1},
            "cache": {"max_bytes": 100_000},
            "retries": 0,
        }
        self.process = ServiceProcess(folder, settings)

    def write(self, content):
        new = self.folder / "new.yaml"
        new.write_text(yaml.safe_dump(content))
        os.replace(new, self.folder / "tenants.yaml")

    def ask(self, method, path, body=None, key=KEYS["boss"][0], **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.process.port, timeout=60)
        headers = {name.replace("_", "-"): str(value) for name, value in headers.items()}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), json.loads(answer.read())
        finally:
            connection.close()

    def complete(self, tenant="boss", model="tiny", tokens=4, **more):
        headers = {name: more.pop(name) for name in ("x_request_timeout",) if name in more}
        body = {"model": model, "prompt": "abc", "max_tokens": tokens, **more}
        return self.ask("POST", "/v1/completions", body, KEYS[tenant][0], **headers)

    def until(self, condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)

    def status(self, model):
        return self.ask("GET", "/admin/status")[2]["models"][model]["v1"]

    def waiting(self, model):
        return self.status(model)["waiting"]


@pytest.fixture(scope="module")
def client(tmp_path_factory, model_directory):
    client = Client(tmp_path_factory.mktemp("admission"), model_directory)
    yield client
    assert client.process.close() == 0


def error_of(answer, status, code):
    assert answer[0] == status, answer
    assert answer[2]["error"]["code"] == code
    if status in (429, 503):
        assert int(answer[1]["retry-after"]) >= 1
    return answer[2]["error"]["message"]


def test_without_a_key_or_with_a_wrong_one_nobody_is_served(client):
    for key in (None, "lgpt-wrong"):
        answer = client.ask("GET", "/v1/models", key=key)
        error_of(answer, 401, "invalid_api_key")
        assert answer[1]["www-authenticate"] == "Bearer"
    assert client.complete()[0] == 200


def test_requests_beyond_the_rate_are_told_when_to_come_again(client):
    answer = client.complete("few")
    assert answer[0] == 200
    assert answer[1]["x-ratelimit-limit-requests"] == "2"
    assert answer[1]["x-ratelimit-remaining-requests"] == "1"
    assert client.complete("few")[0] == 200
    answer = client.complete("few")
    assert "requests_per_minute=2" in error_of(answer, 429, "rate_limit_exceeded")
    assert 20 <= int(answer[1]["retry-after"]) <= 30
    assert answer[1]["x-ratelimit-remaining-requests"] == "0"
    assert client.complete()[0] == 200


def test_a_quota_ends_and_a_changed_file_gives_more_without_forgetting(client):
    assert client.complete("daily", tokens=4)[0] == 200
    assert client.complete("daily", tokens=4)[0] == 200
    message = error_of(client.complete("daily", tokens=4), 429, "insufficient_quota")
    assert message.startswith("14 tokens of tokens_per_day=20")
    client.write(tenants(daily={"tokens_per_day": 27}, late={}))
    client.until(lambda: client.ask("GET", "/v1/models", key=KEYS["late"][0])[0] == 200)
    assert client.complete("daily", tokens=10)[0] == 200
    error_of(client.complete("daily", tokens=1), 429, "insufficient_quota")
    client.write(tenants(daily={"tokens_per_dya": 99}))
    time.sleep(0.6)
    assert client.ask("GET", "/v1/models", key=KEYS["late"][0])[0] == 200
    client.until(lambda: "tokens_per_dya" in client.process.log.read_text())
    client.until(lambda: (client.folder / "tenants.quotas.json").exists())
    client.write(tenants(late={}))


def test_a_model_that_is_not_the_tenants_does_not_exist_for_it(client):
    assert client.complete("narrow")[0] == 200
    error_of(client.complete("narrow", "slow"), 404, "model_not_found")
    for path, body in (("/tokenize", {"prompt": "a"}), ("/v1/embeddings", {"input": "a"})):
        answer = client.ask("POST", path, {"model": "slow", **body}, KEYS["narrow"][0])
        error_of(answer, 404, "model_not_found")
    assert [one["id"] for one in client.ask("GET", "/v1/models", key=KEYS["narrow"][0])[2]["data"]] == ["tiny"]
    assert client.ask("GET", "/admin/status", key=KEYS["narrow"][0])[0] == 403


def test_a_full_queue_refuses_and_one_at_a_time_means_one(client):
    error_of(client.complete(model="slow", prompt=["a", "b"], n=16, tokens=50), 429, "queue_full")
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(client.complete, "single", "slow", 1500)
        client.until(lambda: client.status("slow")["running"])
        message = error_of(client.complete("single"), 429, "too_many_parallel_requests")
        assert "max_parallel=1" in message
        assert long.result()[0] == 200
    assert client.complete("single")[0] == 200
    client.until(lambda: client.status("slow")["running"] == 0)


def test_who_leaves_pays_for_what_was_streamed_and_for_a_whole_answer_all_of_it(client):
    def used():
        return client.ask("GET", "/admin/status")[2]["admission"]["tenants"]["leaver"]["tokens_today"]

    def leave(stream):
        connection = http.client.HTTPConnection("127.0.0.1", client.process.port, timeout=60)
        body = {"model": "slow", "prompt": "abc", "max_tokens": 2000, "stream": stream}
        headers = {"authorization": f"Bearer {KEYS['leaver'][0]}"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        if stream:
            connection.getresponse().read(100)
        else:
            client.until(lambda: client.status("slow")["running"])
        connection.sock.shutdown(2)
        connection.close()
        client.until(lambda: client.status("slow")["running"] == 0)

    leave(stream=False)
    assert used() == 2003
    leave(stream=True)
    assert 2003 + 3 < used() < 2003 + 1500
    assert client.ask("GET", "/admin/status")[2]["admission"]["versions"]["slow@v1"]["breaker"] == "closed"


def test_a_deadline_that_passes_is_the_clients_own_and_frees_everything(client):
    before = client.process.metric("lightning_gpt_admission_rejections_total")
    answer = client.complete(model="slow", n=16, tokens=1000, x_request_timeout=0.05)
    error_of(answer, 408, "client_deadline")
    client.until(lambda: client.status("slow")["running"] == client.waiting("slow") == 0)
    assert client.process.metric("lightning_gpt_admission_rejections_total") > before
    assert client.ask("GET", "/admin/status")[2]["admission"]["versions"]["slow@v1"]["breaker"] == "closed"


def test_a_wait_beyond_the_deadline_is_foreseen(client):
    with ThreadPoolExecutor(20) as pool:
        for _ in range(3):
            answers = pool.map(lambda _: client.complete(model="slow", tokens=60), range(18))
            assert {answer[0] for answer in answers} == {200}
        assert client.ask("GET", "/admin/status")[2]["admission"]["versions"]["slow@v1"]["tokens_per_s"] > 0
        long = pool.submit(client.complete, "boss", "slow", 300, n=16)
        client.until(lambda: client.waiting("slow") > 5)
        answer = client.complete(model="slow", x_request_timeout=0.06)
        error_of(answer, 429, "predicted_wait")
        assert long.result()[0] == 200


def test_a_sure_answer_is_kept_for_its_tenant_alone(client):
    asked = {"temperature": 0, "tokens": 20}
    first, again, other = (client.complete(name, **asked) for name in ("cached", "cached", "boss"))
    assert "x-cache" not in first[1]
    assert again[1]["x-cache"] == "hit"
    assert again[2]["choices"] == first[2]["choices"]
    assert again[2]["id"] == f"cmpl-{again[1]['x-request-id']}" != first[2]["id"]
    assert "x-cache" not in other[1]
    assert "x-cache" not in client.complete("cached", tokens=20)[1]
    assert client.process.metric("lightning_gpt_response_cache_hits_total") == 1


def test_a_version_that_fails_is_given_a_rest_and_the_fallback_answers(client):
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.complete, "boss", "slow", 4000)
        client.until(lambda: client.status("slow")["running"])
        os.kill(client.status("slow")["workers"][0]["pid"], signal.SIGKILL)
        error_of(answer.result(), 503, "worker_died")
    error_of(client.complete(model="slow@v1"), 503, "breaker_open")
    answer = client.complete(model="slow")
    assert answer[0] == 200
    assert answer[2]["model"] == "tiny"
    assert client.process.ready()
    client.until(lambda: client.process.metric("lightning_gpt_breaker_state") > 0)
    client.until(lambda: client.complete(model="slow@v1")[0] == 200, 60)
    assert client.complete(model="slow")[2]["model"] == "slow"
    client.until(lambda: client.process.metric("lightning_gpt_breaker_state") == 0)
    assert '"event":"breaker"' in client.process.log.read_text().replace(" ", "")


def test_who_guesses_keys_is_refused_at_last_even_with_a_good_one(client):
    answers = [client.ask("GET", "/v1/models", key=f"lgpt-{number}") for number in range(30)]
    assert [one[0] for one in answers[-5:]] == [429] * 5
    assert 1 <= [one[0] for one in answers].count(401) <= 20
    error_of(client.ask("GET", "/v1/models"), 429, "rate_limit_exceeded")
