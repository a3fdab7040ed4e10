import pytest
import yaml

BASE = {
    "model": {
        "class_path": "lightning_gpt.tasks.Pretraining",
        "init_args": {"config": {"n_layer": 1, "n_head": 1, "n_embd": 8}},
    },
    "data": {"class_path": "lightning_gpt.data.TokenData", "init_args": {"batch_size": 2, "block_size": 8}},
    "trainer": {"accelerator": "cpu", "devices": 1},
}

RATE = "model.init_args.optimizer.init_args.lr"


@pytest.fixture
def write_experiment(tmp_path, monkeypatch):
    """write_experiment(field=value, ...): an experiment on a tiny corpus in the working directory tmp_path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question.\n" * 60)

    def write(drop=(), **changes):
        content = {
            "question": "Does it matter?",
            "configs": ["base.yaml"],
            "prepare": {"source": "text.txt", "tokenizer": "byte"},
            "budget": {"max_steps": 4},
            "validations": 2,
            "variants": {"one": {}},
            "seeds": [1],
            "against": "none",
            **changes,
        }
        chapter = tmp_path / "01_chapter"
        chapter.mkdir(exist_ok=True)
        path = chapter / "trial.yaml"
        path.write_text(
            yaml.safe_dump({key: value for key, value in content.items() if key not in drop}, sort_keys=False)
        )
        return path

    return write


@pytest.fixture
def write_search(write_experiment):
    """write_search(field=value, ...): a search over the learning rate, on the tiny corpus of write_experiment."""

    def write(drop=(), **changes):
        content = {
            "space": {RATE: {"low": 1e-4, "high": 1e-1, "log": True}},
            "trials": 2,
            "metric": "val/loss",
            "overrides": {"model.init_args.optimizer.class_path": "lightning_gpt.optim.AdamW"},
            **changes,
        }
        return write_experiment(drop=("variants", "against", *drop), **content)

    return write
