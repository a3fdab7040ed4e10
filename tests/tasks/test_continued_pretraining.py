"""A published model that goes on reading stays the model it was: its tokens keep their roles."""

from pathlib import Path

import yaml

from lightning_gpt.cli import main
from lightning_gpt.hub import open_model, save_model
from lightning_gpt.text.chat import CHATML
from lightning_gpt.text.roles import Roles
from lightning_gpt.text.tokenizer import Tokenizer

README = Path(__file__).parents[2] / "README.md"


def test_a_chat_model_that_reads_on_still_ends_its_answers(tiny_model, clean_process, tmp_path):
    net, tokenizer = open_model(tiny_model)
    talks = Tokenizer.from_json(tokenizer.to_json(), Roles(eos="<|endoftext|>", end_ids=(10,), chat_template=CHATML))
    save_model(tmp_path / "talks", net, talks)
    main(["prepare", str(README), "--tokenizer", "talks", "--out", "data"])
    model = {"class_path": "lightning_gpt.tasks.Pretraining", "init_args": {"init_from": "talks"}}
    data = {"data_dir": "data", "batch_size": 2, "block_size": 32}
    settings = {
        "run": {"name": "on", "tensorboard": False},
        "model": model,
        "data": {"class_path": "lightning_gpt.data.TokenData", "init_args": data},
        "samples": {"tokens": 0},
        "curve": {"enabled": False},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "val_check_interval": 1, "limit_val_batches": 1},
    }
    Path("on.yaml").write_text(yaml.safe_dump(settings))
    main(["fit", "-c", "on.yaml"])
    main(["export", "runs/on", "exported"])
    for found in ("runs/on", "exported"):
        kept = open_model(found)[1]
        assert kept.roles.chat_template == CHATML and kept.end_ids == talks.end_ids and 10 in kept.end_ids
