import json

from lightning_gpt.callbacks.jsonl_logger import JsonlLogger, read_metrics


def test_rows_are_appended_and_read_back(tmp_path):
    logger = JsonlLogger(tmp_path / "run")
    logger.log_metrics({"train/loss": 2.5, "epoch": 0}, step=1)
    logger.log_metrics({"epoch": 0}, step=1)
    logger.log_metrics({"val/loss": 0.1 + 0.2}, step=2)
    rows = [json.loads(line) for line in logger.path.read_text().splitlines()]
    assert rows == read_metrics(logger.path) == [{"step": 1, "train/loss": 2.5}, {"step": 2, "val/loss": 0.1 + 0.2}]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    logger = JsonlLogger(tmp_path)
    for step in range(1, 6):
        logger.log_metrics({"train/loss": float(step)}, step=step)
    with open(logger.path, "a") as file:
        file.write('{"step": 6, "train/lo')
    assert [row["step"] for row in read_metrics(logger.path)] == [1, 2, 3, 4, 5]
    logger.rewind(3)
    logger.log_metrics({"train/loss": 4.5}, step=4)
    assert [row["train/loss"] for row in read_metrics(logger.path)] == [1.0, 2.0, 3.0, 4.5]


def test_rewinding_a_run_that_logged_nothing(tmp_path):
    JsonlLogger(tmp_path / "nowhere").rewind(3)
    assert not (tmp_path / "nowhere").exists()
