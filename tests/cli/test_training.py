import re

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.cli import main
from lightning_gpt.cli.run_directory import RunConfig, differences
from lightning_gpt.hub import open_model
from lightning_gpt.hub.checkpoint import read_checkpoint


class Counts(Callback):
    """Keeps how often training did what."""

    def __init__(self):
        Counts.micro_batches, Counts.updates = 0, 0

    def on_train_batch_end(self, *args):
        Counts.micro_batches += 1

    def on_before_zero_grad(self, *args):
        Counts.updates += 1


def losses(run, key="train/loss"):
    return {row["step"]: row[key] for row in read_metrics(run / "metrics.jsonl") if key in row}


def settings(run):
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.fixture
def refused(lightning_gpt, capsys):
    """The one line with which bad input ends, and that it ends with status 2 before anything is written."""

    def run(*options, verb="fit", status=2):
        with pytest.raises(SystemExit) as stop:
            lightning_gpt(verb, *options)
        assert stop.value.code == status
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("lightning-gpt: error: ")
        assert len(lines[-1]) < 400
        assert not re.search("Union|Namespace|NoneType|Traceback", lines[-1])
        assert not [line for line in lines[:-1] if not line.startswith(("step ", "changed since", "run directory"))]
        return lines[-1]

    return run


def test_later_files_and_options_win(lightning_gpt):
    first = {"trainer": {"max_steps": 2, "log_every_n_steps": 2}, "model": {"init_args": {"config": {"n_layer": 1}}}}
    second = {"trainer": {"log_every_n_steps": 1}, "data": {"init_args": {"batch_size": 3}}}
    run = lightning_gpt("fit", first, second, "--data.batch_size", 2)
    config = settings(run)
    assert config["trainer"]["max_steps"] == 2
    assert config["trainer"]["log_every_n_steps"] == 1
    assert config["data"]["init_args"]["batch_size"] == 2
    shape = config["model"]["init_args"]["config"]
    assert (shape["n_layer"], shape["n_head"], shape["n_embd"]) == (1, 2, 32)
    assert losses(run, "progress/tokens") == {1: 32, 2: 64}


def test_null_takes_a_part_of_the_network_out(lightning_gpt):
    moe = {"model": {"init_args": {"config": {"bias": False, "n_kv_head": 1, "moe": {"experts": 4}}}}}
    run = lightning_gpt(
        "fit", moe, "--model.init_args.config.moe", "null", "--model.config.n_kv_head=null", "--trainer.max_steps", 2
    )
    made = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["config"]
    assert made["moe"] is made["n_kv_head"] is None
    assert made["bias"] is False


def test_the_data_tells_the_model_its_sizes(lightning_gpt, corpus):
    net, tokenizer = open_model(lightning_gpt("fit", "--data.block_size", 24, "--trainer.max_steps", 1))
    assert net.config.block_size == 24
    assert net.config.vocab_size == tokenizer.vocab_size
    assert tokenizer.to_json() == (corpus / "tokenizer.json").read_text(encoding="utf-8")


def test_steps_are_optimizer_steps(lightning_gpt):
    counting = ("--trainer.callbacks+=test_training.Counts", "--trainer.accumulate_grad_batches", 4)
    run = lightning_gpt("fit", *counting, "--trainer.max_steps", 5, "--trainer.val_check_interval", 2)
    assert (Counts.micro_batches, Counts.updates) == (20, 5)
    assert sorted(losses(run)) == [1, 2, 3, 4, 5]
    assert sorted(losses(run, "val/loss")) == [2, 4, 5]  # and once at the end
    assert losses(run, "progress/tokens")[5] == 5 * 4 * 4 * 16
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 5


def test_a_saved_configuration_repeats_the_run(lightning_gpt, clean_process, tmp_path):
    first = lightning_gpt("fit", "--model.config.dropout", 0.1, "--seed_everything", 7)
    main(["fit", "-c", str(first / "config.yaml")])
    again = first.with_name("version_1")
    assert losses(again) == losses(first)
    assert settings(again) == settings(first)
    assert losses(lightning_gpt("fit", "--model.config.dropout", 0.1, "--seed_everything", 8)) != losses(first)


def test_last_goes_on_in_its_directory(lightning_gpt, capsys):
    first = lightning_gpt("fit", "--trainer.max_steps", 3, "--model.schedule.decay_steps", 6)
    lightning_gpt("fit", "--run.name", "other", "--trainer.max_steps", 1)
    capsys.readouterr()
    assert lightning_gpt("fit", "--model.schedule.decay_steps", 6, "--ckpt_path", "last") == first
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("changed")] == [
        "changed since the checkpoint: trainer.max_steps: 3 -> 6"
    ]
    assert losses(first) == losses(lightning_gpt("fit"))
    assert settings(first)["trainer"]["max_steps"] == 6


def test_auto_begins_and_goes_on_by_the_same_command(lightning_gpt):
    command = ("fit", "--ckpt_path", "auto", "--model.schedule.decay_steps", 6)
    first = lightning_gpt(*command, "--trainer.max_steps", 3)
    assert lightning_gpt(*command) == first
    assert losses(first) == losses(lightning_gpt("fit"))


def test_a_run_that_has_ended_ends_again(lightning_gpt):
    run = lightning_gpt("fit")
    before = (run / "metrics.jsonl").read_text()
    assert lightning_gpt("fit", "--ckpt_path", "last") == run
    assert (run / "metrics.jsonl").read_text() == before


def test_the_command_line_beats_the_checkpoint(lightning_gpt, capsys):
    lightning_gpt("fit", "--trainer.max_steps", 2, "--model.config.dropout", 0.5, "--trainer.log_every_n_steps", 2)
    run = lightning_gpt("fit", "--model.optimizer.lr", 0.005, "--ckpt_path", "last")
    said = capsys.readouterr().err
    for change in (
        "model.init_args.config.dropout: 0.5 -> 0.0",
        "model.init_args.optimizer.init_args.lr: 0.01 -> 0.005",
        "trainer.log_every_n_steps: 2 -> 1",
        "trainer.max_steps: 2 -> 6",
    ):
        assert f"changed since the checkpoint: {change}\n" in said
    assert sorted(losses(run)) == [2, 3, 4, 5, 6]
    assert losses(run, "optim/lr")[3] == 0.005
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["lightning_gpt"]["model"]["dropout"] == 0.0


def test_unknown_names_come_with_the_nearest(refused):
    assert "did you mean 'trainer.max_steps'?" in refused("--trainer.max_step", 3)
    assert "did you mean 'trainer.max_steps'?" in refused({"trainer": {"max_step": 3}})
    assert "did you mean 'trainer.max_steps'?" in refused({"trainr": {"max_steps": 3}})
    assert "did you mean 'ckpt_path'?" in refused("--ckptpath", "last")
    assert "n_layer'?" in refused("--model.config.n_layers", 3)
    assert "n_layer'?" in refused({"model": {"init_args": {"config": {"n_layers": 3}}}})
    assert "compile'?" in refused({"model": {"init_args": {"compiled": True}}})
    assert "batch_size'?" in refused("--data.batchsize", 3)
    assert "batch_size'?" in refused({"data": {"init_args": {"batchsize": 3}}})
    assert "weight_decay'?" in refused("--model.optimizer.weight_decoy", 3)
    assert "weight_decay'?" in refused({"model": {"init_args": {"optimizer": {"init_args": {"weight_decoy": 3}}}}})
    assert "warmup_steps'?" in refused({"model": {"init_args": {"schedule": {"init_args": {"warm_up_steps": 3}}}}})
    assert "every_n_steps'?" in refused("--last.every_n_step", 3)


def test_wrong_values_name_the_setting(refused):
    assert "max_steps" in refused("--trainer.max_steps", "many")
    assert "n_layer" in refused("--model.config.n_layer", "many")
    assert "n_head=3" in refused("--model.config.n_head", 3)
    assert "model.config.position" in refused("--model.config.position", "rotry")
    assert "block_size=100000" in refused("--data.block_size", 100_000)
    assert "nowhere" in refused("--data.data_dir", "nowhere")
    assert refused("--model.optimizer.lr", -1) == "lightning-gpt: error: lr is -1.0; set it above 0"
    assert "data.mode (TokenData): expected one of ['random', 'epoch']" in refused("--data.mode", "sometimes")
    assert "trainer.precision" in refused("--trainer.precision", "bf17")
    assert "strategy='ddpp'" in refused("--trainer.strategy", "ddpp")
    assert "devices" in refused("--trainer.devices", "2x")


def test_wrong_classes_are_named(refused):
    assert "did you mean 'lightning_gpt.tasks.Pretraining'?" in refused("--model", "lightning_gpt.tasks.Pretrainin")
    assert "did you mean 'lightning_gpt.optim.AdamW'?" in refused("--model.optimizer", "lightning_gpt.optim.AdamX")
    assert "did you mean 'lightning_gpt.optim.AdamW'?" in refused("--model.optimizer", "Adam")
    assert "subclass of OptimizerSpec" in refused("--model.optimizer", "lightning_gpt.optim.Cosine")
    wrong_module = {"data": {"class_path": "lightning_gpt.date.TokenData"}}
    assert "did you mean 'lightning_gpt.data.TokenData'?" in refused(wrong_module)


def test_files_that_are_no_configuration(refused, tmp_path):
    (tmp_path / "broken.yaml").write_text("trainer: {max_steps: [3\n")
    line = refused("-c", tmp_path / "broken.yaml")
    assert "broken.yaml is not valid YAML" in line
    assert "line 2" in line
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    assert "list.yaml" in refused(f"--config={tmp_path / 'list.yaml'}")
    assert "missing.yaml" in refused("-c", tmp_path / "missing.yaml")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there(refused, accelerator):
    assert f"trainer.accelerator={accelerator}" in refused("--trainer.accelerator", accelerator)


@pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
def test_precisions_that_a_cpu_does_not_have(refused, precision):
    assert f"trainer.precision={precision}" in refused("--trainer.precision", precision)


def test_checkpoints_that_cannot_be_continued(refused, lightning_gpt, tmp_path):
    assert "ckpt_path=last: no checkpoints/last.ckpt" in refused("--ckpt_path", "last")
    assert "ckpt_path=best: no checkpoints/best.ckpt" in refused("--ckpt_path", "best")
    assert "nowhere.ckpt: no such checkpoint" in refused("--ckpt_path", tmp_path / "nowhere.ckpt")
    run = lightning_gpt("fit", "--trainer.max_steps", 2)
    good = (run / "checkpoints" / "last.ckpt").read_bytes()
    for name, content in (("cut.ckpt", good[: len(good) // 2]), ("empty.ckpt", b""), ("text.ckpt", b"To be or not")):
        (tmp_path / name).write_bytes(content)
        assert name in refused("--ckpt_path", tmp_path / name)
    torch.save({"model": {"a": torch.ones(2)}, "model_args": {}}, tmp_path / "nanogpt.ckpt")
    assert "nanogpt.ckpt" in refused("--ckpt_path", tmp_path / "nanogpt.ckpt")
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6", "global_step": 3}, tmp_path / "foreign.ckpt")
    assert "foreign.ckpt" in refused("--ckpt_path", tmp_path / "foreign.ckpt")
    assert "foreign.ckpt" in refused("--model.init_from", tmp_path / "foreign.ckpt")
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == good


def test_another_corpus_is_not_continued(refused, lightning_gpt, tmp_path, corpus, capsys):
    from lightning_gpt.data.prepare import prepare

    lightning_gpt("fit", "--trainer.max_steps", 2)
    text = (corpus.parent / "words.jsonl").read_text(encoding="utf-8")
    (tmp_path / "shuffled.jsonl").write_text("".join(reversed(text.splitlines(keepends=True))), encoding="utf-8")
    prepare(str(tmp_path / "shuffled.jsonl"), tokenizer="char", out=str(tmp_path / "shuffled"), workers=0)
    capsys.readouterr()
    line = refused("--data.data_dir", tmp_path / "shuffled", "--ckpt_path", "last")
    assert "holds another corpus" in line


def test_runs_are_numbered(tmp_path):
    runs = RunConfig(name="a", dir=str(tmp_path))
    assert runs.new_version() == 0
    for version in (0, 2, 10):
        (runs.directory(version) / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "version_x").mkdir()
    assert runs.versions() == [0, 2, 10]
    assert runs.new_version() == 11
    (runs.directory(2) / "checkpoints" / "last.ckpt").touch()
    assert runs.newest_with_last() == 2


def test_differences_are_dotted():
    before = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": 0}
    assert differences(before, before) == []
    now = {"a": {"b": 2, "c": [1, 2]}, "e": None, "f": 3}
    assert differences(before, now) == ["a.b: 1 -> 2", "e: 0 -> None", "f: (unset) -> 3"]
