from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.hub.checkpoint import read_checkpoint


def validated(run):
    return [row["step"] for row in read_metrics(run / "metrics.jsonl") if "val/loss" in row]


def test_the_last_weights_are_validated_once(lightning_gpt):
    run = lightning_gpt("fit", "--trainer.max_steps", 5)
    assert validated(run) == [3, 5]
    assert read_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"] == 5
    assert validated(lightning_gpt("fit", "--trainer.max_steps", 5, "--ckpt_path", "last")) == [3, 5]
    assert validated(lightning_gpt("fit", "--trainer.max_steps", 9, "--ckpt_path", "last")) == [3, 5, 6, 9]


def test_a_run_shorter_than_the_interval_is_validated(lightning_gpt):
    assert validated(lightning_gpt("fit", "--trainer.val_check_interval", 1000)) == [6]
