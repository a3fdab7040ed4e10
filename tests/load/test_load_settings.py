import json

import pytest

from lightning_gpt.load.prompts import read_prompts
from lightning_gpt.load.requests import Bodies, Draws
from lightning_gpt.load.settings import LoadSettings
from lightning_gpt.load.target import parse_target

URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    "wrong, match",
    [
        ({"rate": -1}, "rate=-1 must be at least 0"),
        ({"rate": 0}, "rate=0 sends nothing"),
        ({"rate": float("nan")}, "rate=nan"),
        ({"duration_s": 0}, "duration_s=0 must be above 0"),
        ({"stream": 1.5}, "stream=1.5 must be a share"),
        ({"concurrency": 0}, "concurrency=0 must be at least 1"),
        ({"concurrency": 2, "rate_to": 5}, "closed loop and has no rate"),
        ({"steps": "1:2", "rate_to": 5}, "not both"),
        ({"warmup_s": 30}, "warmup_s=30 must be shorter"),
        ({"max_tokens": "x"}, "max_tokens=x"),
        ({"words": "0"}, "words=0"),
        ({"endpoint": "embeddings"}, "endpoint=embeddings must be one of completions, chat"),
        ({"check": True, "temperature": 1.0}, "temperature 0 or sampling_seed"),
        ({"api_keys": ("a\r\nX: y",)}, "printable ASCII"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        LoadSettings(URL, **wrong)


def test_only_this_machine_is_loaded_unless_a_person_says_so():
    for url in (URL, "http://localhost:8000/v1/", "127.0.0.1:8000", "http://[::1]:8000"):
        target = parse_target(url, allow_remote=False)
        assert target.path == "/v1" and target.port == 8000 and not target.secure
    assert parse_target("http://[::1]:8000", False).host == "[::1]:8000"
    with pytest.raises(ValueError, match="--allow_remote true"):
        parse_target("http://192.0.2.1:8000", allow_remote=False)
    target = parse_target("https://192.0.2.1/api/v1", allow_remote=True)
    assert (target.host, target.port, target.path, target.secure) == ("192.0.2.1", 443, "/api/v1", True)
    for url in ("ftp://127.0.0.1", "http://", "http://127.0.0.1:x", "http://user@127.0.0.1", "http://127.0.0.1/?a=b"):
        with pytest.raises(ValueError, match="must be http://HOST:PORT"):
            parse_target(url, allow_remote=False)
    with pytest.raises(ValueError, match="leads nowhere"):
        parse_target("http://no-such-host.invalid", allow_remote=True)


def request_of(settings, **asked):
    prompts = read_prompts("builtin", None, 1, 0)
    bodies = Bodies(settings, parse_target(settings.url, False), "m", prompts)
    head, _, body = bodies.payload(**{"prompt": 0, "max_tokens": 5, "stream": False, "tenant": 0} | asked).partition(
        b"\r\n\r\n"
    )
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    assert int(headers["Content-Length"]) == len(body)
    return lines[0], headers, json.loads(body), prompts[0]


def test_requests_say_what_the_settings_say():
    line, headers, body, prompt = request_of(LoadSettings(URL))
    assert line == "POST /v1/completions HTTP/1.1" and headers["Host"] == "127.0.0.1:8000"
    assert "Authorization" not in headers and "X-Request-Timeout" not in headers
    assert body == {"model": "m", "prompt": prompt, "temperature": 0.0, "max_tokens": 5}
    settings = LoadSettings(
        URL,
        endpoint="chat",
        temperature=0.7,
        sampling_seed=3,
        ignore_eos=True,
        api_keys=("key-one", "key-two"),
        request_timeout_s=1.5,
    )
    line, headers, body, prompt = request_of(settings, stream=True, tenant=1)
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert headers["Authorization"] == "Bearer key-two" and headers["X-Request-Timeout"] == "1.5"
    assert body["messages"] == [{"role": "user", "content": prompt}]
    assert body["stream"] and body["stream_options"] == {"include_usage": True}
    assert (body["seed"], body["ignore_eos"], body["temperature"]) == (3, True, 0.7)
    assert "key-one" not in repr(settings) and "key-one" not in json.dumps(settings.public())


def test_talks_need_the_endpoint_for_them(tmp_path):
    with pytest.raises(ValueError, match="--endpoint chat"):
        Bodies(LoadSettings(URL), parse_target(URL, False), "m", [[{"role": "user", "content": "x"}]])


def test_draws_depend_on_the_seed_and_ask_every_prompt_equally_often():
    settings = LoadSettings(URL, stream=0.25, max_tokens="4-6", api_keys=("a", "b"), seed=5)
    draws = Draws.of(settings, 7, 7000)
    assert draws == Draws.of(settings, 7, 7000)
    assert draws != Draws.of(LoadSettings(URL, stream=0.25, max_tokens="4-6", api_keys=("a", "b"), seed=6), 7, 7000)
    assert [draws.prompt.count(one) for one in range(7)] == [1000] * 7
    assert set(draws.max_tokens) == {4, 5, 6} and set(draws.tenant) == {0, 1}
    assert abs(sum(draws.stream) / 7000 - 0.25) < 0.03
