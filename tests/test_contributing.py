"""The worked examples of CONTRIBUTING.md: their files are written out, their tests and commands run."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml
from test_house import FLOORS, KNOWS_LIGHTNING

from lightning_gpt.cli import main
from lightning_gpt.cli.experiment import run_command

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = re.findall(r"^PYTHONPATH=\. (lightning-gpt .*)$", TEXT, re.MULTILINE)


@pytest.fixture
def written(tmp_path, monkeypatch) -> Path:
    """The examples' Python files, where they can be imported."""
    for name, content in FILES.items():
        if name.endswith(".py"):
            (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def options(of: str) -> list[str]:
    """Of the command that names a class, without its configuration files."""
    (command,) = [line for line in COMMANDS if of in line]
    words = shlex.split(command)[2:]
    return words[4:] if words[0] == "-c" else words


def test_the_floors_are_those_that_are_held():
    """test_house.py holds FLOORS against the imports; the table is what people read."""
    rows = re.findall(r"^\| (\d) \| (.*?) \|", TEXT, re.MULTILINE)
    written = {folder: int(floor) for floor, folders in rows for folder in re.findall(r"`(\w+)`", folders)}
    assert written == FLOORS
    (sentence,) = re.findall(r"^Of all these only (.*?) import `lightning`", TEXT, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", sentence)) == KNOWS_LIGHTNING


def test_every_file_of_the_examples_is_here():
    assert list(FILES) == [
        "staircase.py",
        "test_staircase.py",
        "later_tokens.py",
        "experiments/03_training/staircase.yaml",
    ]


def test_the_knob_does_what_its_test_says(written):
    module = importlib.import_module("test_staircase")
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


@pytest.mark.parametrize("example", ["staircase.Staircase", "later_tokens.LaterTokens"])
def test_the_command_of_an_example_trains(example, written, lightning_gpt):
    run = lightning_gpt("fit", *options(example), "--trainer.max_steps", 3)
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 3
    assert example in (run / "config.yaml").read_text()
    assert (run / "checkpoints" / "last.ckpt").exists()


def test_a_wrong_setting_of_the_task_is_named(written, recipe, clean_process, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", str(recipe), "--model", "later_tokens.LaterTokens", "--model.init_args.skipped", "1.5"])
    assert stop.value.code == 2
    assert "model.skipped=1.5 must be at least 0 and below 1" in capsys.readouterr().err


def test_the_experiment_runs(written, recipe, clean_process, corpus):
    """Two steps of each variant, on a small text."""
    (name,) = [name for name in FILES if name.endswith(".yaml")]
    content = yaml.safe_load(FILES[name])
    content["configs"] = [str(recipe)]
    content["prepare"] = {"source": str(corpus.parent / "words.jsonl"), "tokenizer": "char"}
    path = written / name
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    run_command(str(path), smoke=True)
    (results,) = written.glob("runs/experiments/smoke/**/results.json")
    assert [cell["variant"] for cell in yaml.safe_load(results.read_text())["cells"]] == ["cosine", "stairs"]
