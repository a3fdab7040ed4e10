"""A canary that is slower, and answers that are shortened under pressure, in the real service."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from service_process import ServiceProcess

from lightning_gpt.hub import save_model
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.text.byte import byte_tokenizer

pytestmark = pytest.mark.slow
"""Two services, a flood of requests, a minute."""


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory):
    """As the small model, with eight times the layers."""
    torch.manual_seed(0)
    llama = {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "bias": False, "tie_embeddings": False}
    net = GPT(GPTConfig(vocab_size=256, block_size=4096, n_layer=16, n_head=2, n_embd=64, init_std=0.2, **llama))
    directory = tmp_path_factory.mktemp("deep") / "model"
    save_model(directory, net, byte_tokenizer())
    return directory


@pytest.fixture(scope="module")
def pressed(tmp_path_factory, model_directory, deep_model):
    one = {"threads": 1, "max_running": 1}
    settings = {
        "models": [
            {
                "name": "two",
                "versions": [
                    {"id": "v1", "path": str(model_directory), **one},
                    {"id": "v2", "path": str(deep_model), "canary": True, **one},
                ],
            },
            {"name": "slow", "versions": [{"path": str(model_directory), **one}]},
        ],
        "limits": {"max_wait_s": 50},
        "degradation": {"enter": [0.002, 0.9], "leave": [0.001, 0.5], "rise_s": 0.0, "dwell_s": 0.5},
        "degraded_max_tokens": 7,
    }
    running = ServiceProcess(tmp_path_factory.mktemp("pressed"), settings)
    yield running
    assert running.close() == 0


def ask(service, model, tokens, **headers):
    body = {"model": model, "prompt": "abc", "max_tokens": tokens}
    status, answer = service.post("/v1/completions", body, **headers)
    assert status == 200, answer
    return answer


def test_a_slower_canary_is_taken_out_and_its_clients_are_served_by_the_stable_version(pressed):
    clients = [f"client-{number}" for number in range(40)]
    before = {one: ask(pressed, "two", 20, **{"x-session-id": one})["system_fingerprint"] for one in clients}
    assert set(before.values()) == {"v1", "v2"}
    for number in range(600):
        answer = ask(pressed, "two", 20, **{"x-session-id": clients[number % 40]})
        if pressed.metric("lightning_gpt_rollbacks_total"):
            break
        assert answer["system_fingerprint"] == before[clients[number % 40]]
    else:
        pytest.fail("the canary is still there")
    assert {ask(pressed, "two", 5, **{"x-session-id": one})["system_fingerprint"] for one in clients} == {"v1"}
    assert ask(pressed, "two@v2", 5)["system_fingerprint"] == "v2"
    assert "latency" in next(line for line in pressed.log.read_text().splitlines() if '"rollback"' in line)
    assert b'"rolled_back":true' in pressed.get("/v1/models/two")[1]


def test_answers_become_shorter_under_pressure_and_whole_again_after_it(pressed):
    with ThreadPoolExecutor(24) as pool:
        lengths = []
        for _ in range(20):  # the rate must be learnt first
            answers = list(pool.map(lambda _: ask(pressed, "slow", 60), range(24)))
            lengths += [answer["usage"]["completion_tokens"] for answer in answers]
            if 7 in lengths:
                break
    assert set(lengths) == {60, 7}
    end = time.monotonic() + 20
    while ask(pressed, "slow", 60)["usage"]["completion_tokens"] != 60:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert '"degradation"' in pressed.log.read_text()
