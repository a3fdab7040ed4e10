"""Every experiment of the repository runs: two steps of each variant, through the command a user types."""

import json
import shutil
from pathlib import Path

import pytest

from lightning_gpt.cli.experiment import run_command
from lightning_gpt.experiments import load_experiment

ROOT = Path(__file__).parents[2]
FILES = sorted(path.relative_to(ROOT) for path in ROOT.glob("experiments/*/*.yaml"))
SEARCHES = [path for path in FILES if "\nspace:" in (ROOT / path).read_text()]
EXPERIMENTS = [path for path in FILES if path not in SEARCHES]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_model, tiny_llava, pair_rows, squares):
    """A directory with the repository's files, whose corpora all experiments share, and small stand-ins for what
    experiments need to be made before."""
    folder = tmp_path_factory.mktemp("smoke")
    for name in ("configs", "experiments"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(squares.parent, folder / "data" / "emoji")
    for name in ("train", "val", "openmoji_val"):
        (folder / "data" / "emoji" / f"{name}.jsonl").symlink_to("rows.jsonl")
    shutil.copytree(squares.parent, folder / "data" / "picture_questions")
    for name in ("align", "instruct", "val"):
        (folder / "data" / "picture_questions" / f"{name}.jsonl").symlink_to("questions.jsonl")
    stand_ins = {
        "models/shakespeare": tiny_model,
        "models/smollm2": tiny_model,
        "models/sft_shakespeare": tiny_model,
        "runs/llava_small_align": tiny_llava,
        "data/shakespeare/meta.json": pair_rows,
        "data/shakespeare_smollm2/meta.json": pair_rows,
        "data/sentiment/train.jsonl": pair_rows,
        "data/sentiment/shuffled.jsonl": pair_rows,
        "data/sentiment/test.jsonl": pair_rows,
    }
    for name, made in stand_ins.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(made)
    (folder / "data" / "evaluation").mkdir()
    (folder / "data" / "evaluation" / "arc_easy.jsonl").write_text(QUESTIONS)
    return folder


QUESTIONS = "".join(
    json.dumps({"question": f"{n} or?", "choices": {"text": ["yes", "no"], "label": ["A", "B"]}, "answerKey": "A"})
    + "\n"
    for n in range(3)
)
LONG = {
    "02_data/tokenizers",
    "03_training/learning_rates",
    "03_training/recipe",
    "05_architecture/norm_place",
    "06_scaling/grid",
    "06_scaling/learning_rates",
    "07_improvements/ladder",
    "07_improvements/positions",
    "09_inference/weight_types",
    "11_multimodal/batch_and_loss",
    "11_multimodal/locked_tower",
    "11_multimodal/temperature",
    "12_experts/balance",
    "12_experts/capacity",
}
"""Tried by `make test-slow`: many variants, or dear ones, of kinds that others try as well."""


def test_there_are_experiments():
    assert len(EXPERIMENTS) > 15


def cell(path: Path):
    """Of the table of smoke tests."""
    name = f"{path.parent.name}/{path.stem}"
    return pytest.param(path, id=name, marks=[pytest.mark.slow] if name in LONG else [])


@pytest.mark.parametrize("path", [cell(path) for path in EXPERIMENTS])
def test_smoke(path, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    experiment = load_experiment(path)
    assert experiment.expectation, "say what is expected before it is run"
    assert f"lightning-gpt experiment run {path.as_posix()}" in path.read_text()
    run_command(str(path), smoke=True)
    shown = capsys.readouterr()
    report = Path(shown.out.strip().splitlines()[-1])
    assert report.is_file()
    cells = json.loads((report.parent / "results.json").read_text())["cells"]
    assert {cell["variant"]: cell["status"] for cell in cells} == dict.fromkeys(experiment.variants, "done")
    # Metrics of validation in longer windows or of experts are there too.
    assert all(set(experiment.metrics) <= set(cell["final"]) for cell in cells)
    found = {picture.stem.partition("_")[2] for picture in report.parent.glob("retrieval_*.png")}
    assert found == (set(experiment.variants) if "configs/clip/" in path.read_text() else set())
    assert all(f"](retrieval_{variant}.png)" in report.read_text() for variant in found)


def test_every_report_is_of_its_experiment():
    """Committed results answer the question of the file beside them, and were made by its command."""
    for path in EXPERIMENTS:
        results = ROOT / path.with_suffix("") / "results.json"
        if results.exists():
            content = json.loads(results.read_text())
            assert content["question"] == load_experiment(ROOT / path).question, path
            assert content["command"] == f"lightning-gpt experiment run {path.as_posix()}"
            assert (results.parent / "report.md").read_text().startswith(f"# {content['question']}\n")
