"""Experiments whose data are no corpus: reward models from pairs, through real runs."""

import json
import shutil

import pytest
import yaml

from lightning_gpt.cli.experiment import run_command
from lightning_gpt.experiments import load_experiment
from lightning_gpt.experiments.data_files import data_files, model_files
from lightning_gpt.experiments.plan import plan_cells
from lightning_gpt.experiments.search_spec import load_search
from lightning_gpt.experiments.search_study import check_identity, import_optuna

INIT = "model.init_args.init_from"
BASE = {
    "model": {
        "class_path": "lightning_gpt.tasks.RewardModel",
        "init_args": {
            "init_from": "model",
            "optimizer": {"class_path": "lightning_gpt.optim.AdamW", "init_args": {"lr": 3e-3}},
        },
    },
    "data": {
        "class_path": "lightning_gpt.data.PreferenceData",
        "init_args": {"train": "pairs.jsonl", "val": "val.jsonl", "batch_size": 4},
    },
    "trainer": {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
}


def workplace(folder, tiny_model, pair_rows):
    """A folder with rows, two models to start from, and a recipe."""
    from lightning_gpt.hub import open_model, save_model

    lines = pair_rows.read_text().splitlines(keepends=True)
    (folder / "pairs.jsonl").write_text("".join(lines[:24]))
    (folder / "val.jsonl").write_text("".join(lines[24:]))
    shutil.copytree(tiny_model, folder / "model")
    net, tokenizer = open_model(tiny_model)
    for weight in net.parameters():
        weight.data *= 0.5
    save_model(folder / "other", net, tokenizer)
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    return folder


def write(folder, **changes):
    content = {
        "question": "Where to start?",
        "configs": ["base.yaml"],
        "needs": {"other": "lightning-gpt export  runs/other\n other"},
        "budget": {"max_steps": 6},
        "validations": 3,
        "variants": {"here": {}, "there": {INIT: "other"}},
        "seeds": [1, 2],
        "metrics": ["val/accuracy", "val/margin", "val/loss"],
        "better": {"val/margin": "larger"},
        **changes,
    }
    path = folder / "13_chapter" / "start.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_model, pair_rows):
    """The folder in which two variants with two seeds each were run by the command."""
    folder = workplace(tmp_path_factory.mktemp("ran"), tiny_model, pair_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command(str(write(folder).relative_to(folder)))
    return folder


@pytest.fixture
def place(tmp_path, tiny_model, pair_rows, monkeypatch):
    """A folder in which nothing was run yet, to work in."""
    monkeypatch.chdir(tmp_path)
    return workplace(tmp_path, tiny_model, pair_rows)


def test_values_are_those_logged_and_the_largest_is_best(ran):
    results = json.loads((ran / "13_chapter/start/results.json").read_text())
    assert results["better"] == {"val/accuracy": "larger", "val/margin": "larger", "val/loss": "smaller"}
    assert results["loss_unit"] == "nats per pair" and results["corpora"] == {}
    for cell in results["cells"]:
        log = ran / f"runs/experiments/13_chapter/start/{cell['variant']}/seed_{cell['seed']}/version_0/metrics.jsonl"
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        assert cell["status"] == "done" and max(row["step"] for row in rows) == cell["steps"] == 6
        for name, choose in {"val/accuracy": max, "val/margin": max, "val/loss": min}.items():
            values = [row[name] for row in rows if name in row]
            assert len(values) == 3 and cell["final"][name] == values[-1]
            assert cell["best"][name] == choose(values)
        assert cell["training_seconds"] > 0 and cell["tokens"] is None and cell["training_flops"] is None
    # Runs of one seed deal out the same pairs; they differ by where they start.
    losses = {(cell["variant"], cell["seed"]): cell["final"]["val/loss"] for cell in results["cells"]}
    assert len(set(losses.values())) == 4
    assert all(0 <= cell["final"]["val/accuracy"] <= 1 for cell in results["cells"])


def test_the_report_says_what_it_was_made_of(ran):
    results = json.loads((ran / "13_chapter/start/results.json").read_text())
    text = (ran / "13_chapter/start/report.md").read_text()
    means = {
        name: sum(cell["final"]["val/accuracy"] for cell in results["cells"] if cell["variant"] == name) / 2
        for name in ("here", "there")
    }
    assert f"Highest mean: `{max(sorted(means, reverse=True), key=means.get)}`, {max(means.values()):.4f}." in text
    assert "| here" not in text and "- needs `other`, made by `lightning-gpt export runs/other other`" in text
    assert "| `here` | `data.train` | `pairs.jsonl` | 24 rows |" in text
    assert "| `there` | `model.init_from` | `other` |" in text and "bytes/token" not in text
    assert "| `here` | - | 6 | - | - |" in text
    assert (ran / "13_chapter/start/curves.png").stat().st_size > 5_000


def test_finished_runs_stand_until_rows_or_the_model_change(ran, monkeypatch, tmp_path):
    shutil.copytree(ran, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    path = tmp_path / "copy/13_chapter/start.yaml"
    before = json.loads((ran / "13_chapter/start/results.json").read_text())["cells"]

    def hashes():
        return [cell.config_hash for cell in plan_cells(load_experiment(path))]

    assert hashes() == [cell["config_hash"] for cell in before]
    rows = (tmp_path / "copy/val.jsonl").read_text()
    (tmp_path / "copy/val.jsonl").write_text(rows.splitlines(keepends=True)[0])
    assert not set(hashes()) & {cell["config_hash"] for cell in before}
    (tmp_path / "copy/val.jsonl").write_text(rows)
    weights = tmp_path / "copy/other/model.safetensors"
    weights.write_bytes((tmp_path / "copy/model/model.safetensors").read_bytes())
    for new, cell in zip(hashes(), before):
        assert (new == cell["config_hash"]) == (cell["variant"] == "here")


def test_what_is_needed_is_named_with_its_command_before_anything_runs(place):
    shutil.rmtree(place / "other")
    with pytest.raises(ValueError, match="needs other, which does not exist; it is made by: lightning-gpt export runs"):
        run_command(str(write(place)), smoke=True)
    assert not (place / "runs").exists()


def test_smoke_and_the_cost_of_steps_in_seconds(place, capsys):
    path = write(place, budget={"seconds": 0.4}, variants={"here": {}}, against="none", seeds=[1], validations=2)
    run_command(str(path), smoke=True)
    report = place / "runs/experiments/smoke/13_chapter/start/report/report.md"
    assert capsys.readouterr().out.strip() == str(report.relative_to(place))
    assert "| `here` | 1 | " in report.read_text()
    (cell,) = plan_cells(load_experiment(path))
    assert cell.max_steps == pytest.approx(0.4 / cell.step_seconds, rel=0.5) and cell.max_steps % 2 == 0


@pytest.mark.parametrize("kind", ["tokens", "training_flops", "bytes"])
def test_budgets_of_tokens_need_a_corpus(place, kind):
    with pytest.raises(
        ValueError, match=f"budget.{kind} counts tokens of a corpus, and here learns from data that are"
    ):
        plan_cells(load_experiment(write(place, budget={kind: 1e6})))


@pytest.mark.parametrize("kind", ["tokens", "training_flops", "parameters"])
def test_equality_that_cannot_be_checked_is_refused(place, kind):
    with pytest.raises(ValueError, match=f"equal.{kind} cannot be checked: it needs a corpus"):
        plan_cells(load_experiment(write(place, equal={kind: 0.1})))


def test_rows_that_are_not_there_are_named(place):
    (place / "val.jsonl").unlink()
    with pytest.raises(ValueError, match=r"start.yaml: here: data.init_args.val=val.jsonl does not exist"):
        plan_cells(load_experiment(write(place)))


def test_a_search_goes_on_with_the_rows_and_the_model_it_began_with(place):
    rate = "model.init_args.optimizer.init_args.lr"
    content = {"question": "Which rate?", "configs": ["base.yaml"], "budget": {"max_steps": 4}, "seeds": [1]}
    path = place / "search.yaml"
    path.write_text(yaml.safe_dump({**content, "space": {rate: {"low": 1e-3, "high": 1e-1}}, "trials": 2}))
    search, study = load_search(path), import_optuna().create_study()
    check_identity(search, study)
    check_identity(search, study)
    for name in ("val.jsonl", "model/config.json"):
        before = (place / name).read_text()
        (place / name).write_text(before + "\n" + before)
        with pytest.raises(ValueError, match="earlier trials were made under another corpus"):
            check_identity(search, study)
        (place / name).write_text(before)
    check_identity(search, study)


def test_contents_of_folders_pictures_and_runs_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = {"rows/a.jsonl": "1\n2\n", "rows/b.jsonl": "3\n", "art/x.png": "old", "art/y.png": "same"}
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    rows = [{"image": "art/x.png", "caption": "x"}, {"images": ["art/y.png", "art/gone.png"], "text": "y"}]
    (tmp_path / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checkpoints = tmp_path / "runs/sft/version_0/checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "best.ckpt").write_text("weights")
    (tmp_path / "cache.safetensors").write_text("written by training")
    tree = {
        "data": {
            "init_args": {"train": "rows", "val": "shown.jsonl", "test": "owner/name", "chat_template": "{{ x }}" * 99}
        },
        "model": {
            "init_args": {
                "init_from": "owner/name",
                "reward": {"class_path": "some.Reward", "init_args": {"path": "runs/sft"}},
                "reference_file": "cache.safetensors",
            }
        },
    }
    train, val, test = data_files(tree)
    assert (train.files, train.bytes, train.rows) == (2, 6, None)
    assert (val.files, val.rows) == (3, 2)
    assert (test.setting, test.path, test.sha256) == ("data.init_args.test", "owner/name", None)
    (reward,) = model_files(tree)
    assert (reward.setting, reward.path, reward.bytes) == ("model.init_args.reward.init_args.path", "runs/sft", 7)
    (tmp_path / "art/x.png").write_text("new!")
    (tmp_path / "rows/b.jsonl").rename(tmp_path / "rows/c.jsonl")
    (checkpoints / "best.ckpt").write_text("WEIGHTS")
    again = data_files(tree)
    assert again[0].sha256 != train.sha256 and again[1].sha256 != val.sha256
    assert model_files(tree)[0].sha256 != reward.sha256
