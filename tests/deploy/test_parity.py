"""deploy/parity.py between models of a service: the same twice, one that is rounded, one with another matrix."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_gpt.hub import save_model
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.text.byte import byte_tokenizer

ROOT = Path(__file__).parents[2]
PARITY = ROOT / "deploy" / "parity.py"


def loaded(path: Path, name: str):
    """A file that is in no package."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


parity = loaded(PARITY, "deploy_parity")
ServiceProcess = loaded(ROOT / "tests" / "serving" / "service_process.py", "deploy_service_process").ServiceProcess


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Three models of one service: a; b, rounded to bfloat16 and so almost a; c, with one other matrix."""
    folder = tmp_path_factory.mktemp("parity")
    torch.manual_seed(0)
    llama = {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "bias": False}
    net = GPT(GPTConfig(vocab_size=256, block_size=128, n_layer=2, n_head=2, n_embd=64, init_std=0.2, **llama))
    save_model(folder / "a", net, byte_tokenizer())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.bfloat16().float())
    save_model(folder / "b", net, byte_tokenizer())
    with torch.no_grad():
        next(iter(net.blocks[1].parameters())).mul_(1.5)
    save_model(folder / "c", net, byte_tokenizer())
    models = [{"name": name, "versions": [{"path": str(folder / name), "threads": 1}]} for name in "abc"]
    running = ServiceProcess(folder, {"models": models})
    yield running
    running.close()


def run(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, PARITY, *map(str, words)], capture_output=True, text=True)


@pytest.mark.slow
def test_the_same_model_answers_the_same(service, tmp_path):
    url, output = service.url, tmp_path / "parity.json"
    done = run(url, url, "--tolerance", 1e-4, "--max-tokens", 24, "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(output.read_text())
    assert told["passed"] and told["share_equal"] == 1 and told["worst_logprob_difference"] <= 1e-4
    assert told["tokens"] == 24 * len(parity.PROMPTS) and told["verdicts"]["same"] == len(parity.PROMPTS)


@pytest.mark.slow
def test_rounded_weights_pass_with_room_and_fail_without(service):
    words = [service.url, service.url, "--model-a", "a", "--model-b", "b", "--max-tokens", 12]
    done = run(*words, "--tolerance", 1e-5)
    assert done.returncode == 1 and "logprobs" in done.stdout
    assert run(*words, "--tolerance", 1.0).returncode == 0


@pytest.mark.slow
def test_another_matrix_is_seen(service, tmp_path):
    words = [service.url, service.url, "--model-a", "a", "--model-b", "c", "--output", tmp_path / "parity.json"]
    done = run(*words, "--tolerance", 0.05)
    assert done.returncode == 1
    told = json.loads((tmp_path / "parity.json").read_text())
    assert not told["passed"] and told["verdicts"]["tokens"] + told["verdicts"]["logprobs"] > 0


@pytest.mark.slow
def test_what_cannot_be_asked_is_told_in_a_line(service, tmp_path):
    done = run(service.url, "http://127.0.0.1:9")
    assert done.returncode == 2 and "http://127.0.0.1:9/v1/models cannot be asked" in done.stderr
    done = run(service.url, service.url, "--model-b", "nobody")
    assert done.returncode == 2 and "status 404" in done.stderr
    (tmp_path / "empty").write_text("\n")
    done = run(service.url, service.url, "--prompts", tmp_path / "empty")
    assert done.returncode == 2 and "must hold a prompt a line" in done.stderr
    assert "Traceback" not in done.stderr


def said(tokens: str, *logprobs: float, nearest: list | None = None, finish: str = "length", prompt: int = 3):
    return parity.Answer(tokens, list(tokens), list(logprobs), nearest or [{}] * len(tokens), finish, prompt)


@pytest.mark.parametrize(
    ("a", "b", "verdict", "equal"),
    [
        (said("ab", -1, -2), said("ab", -1.04, -2), "same", 2),
        (said("ab", -1, -2), said("ab", -1.06, -2), "logprobs", 2),
        (said("ab", -1, -2), said("ab", -1, -2, prompt=4), "prompt", 2),
        (said("ab", -1, -2), said("ab", -1, -2, finish="stop"), "tokens", 2),
        (said("ab", -1, -2), said("a", -1, finish="stop"), "tokens", 1),
        # Each would nearly have said what the other did.
        (said("ab", -1, -2, nearest=[{}, {"c": -2.09}]), said("ac", -1, -2, nearest=[{}, {"b": -2.01}]), "tie", 1),
        # Only one of them.
        (said("ab", -1, -2, nearest=[{}, {"c": -2.09}]), said("ac", -1, -2, nearest=[{}, {"b": -2.4}]), "tokens", 1),
        (said("ab", -1, -2), said("ac", -1, -2), "tokens", 1),
    ],
)
def test_a_tie_is_told_from_a_mistake(a, b, verdict, equal):
    found = parity.compare("x", a, b, 0.05)
    assert (found.verdict, found.equal) == (verdict, equal)
    assert parity.report([found], 0.05)["passed"] == (verdict in ("same", "tie"))
