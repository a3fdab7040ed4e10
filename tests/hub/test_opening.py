import argparse
import os
import pathlib

import pytest
import torch

from lightning_gpt.hub import load_checkpoint, open_model, save_model
from lightning_gpt.nn import GPTConfig

CONFIG = GPTConfig(vocab_size=257, block_size=16, n_layer=2, n_head=2, n_embd=16, position="rotary", logit_softcap=9.0)


def save_checkpoint(path, net, tokenizer, **extra):
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "format": 1,
        "model": net.config.to_dict(),
        "tokenizer": tokenizer.to_json(),
        "data_fingerprint": "0" * 64,
        "tokens_seen": 5,
    }
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()} | {"metric.total": torch.ones(1)}
    content = {"pytorch-lightning_version": "2.6.6", "state_dict": state, "lightning_gpt": about} | extra
    torch.save(content, path)
    return path


def same(one, two):
    assert one.config == two.config
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class Dangerous:
    """Unpickled as it asks, this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


def test_a_checkpoint(make_network, tokenizer, tmp_path):
    net = make_network(CONFIG)
    path = save_checkpoint(tmp_path / "last.ckpt", net, tokenizer)
    back, back_tokenizer = load_checkpoint(path)
    same(net, back)
    assert back_tokenizer.fingerprint == tokenizer.fingerprint
    assert open_model(path, torch.bfloat16)[0].head.weight.dtype == torch.bfloat16


def test_python_objects_in_a_checkpoint_are_not_needed(make_network, tokenizer, tmp_path):
    net = make_network(CONFIG)
    extra = {
        "hyper_parameters": {"config": CONFIG, "path": pathlib.Path("x"), "object": argparse.Namespace(a=1)},
        "callbacks": {"x": {"state": torch.optim.AdamW}},
    }
    path = save_checkpoint(tmp_path / "last.ckpt", net, tokenizer, **extra)
    same(net, load_checkpoint(path)[0])


def test_code_in_a_checkpoint_is_not_run(make_network, tokenizer, tmp_path):
    danger = {"danger": Dangerous(tmp_path / "trap")}
    path = save_checkpoint(tmp_path / "last.ckpt", make_network(CONFIG), tokenizer, **danger)
    with pytest.raises(ValueError, match=r"last\.ckpt holds Python objects that cannot be read safely"):
        load_checkpoint(path)
    assert not (tmp_path / "trap").exists()


def test_weights_saved_from_a_compiled_network(make_network, tokenizer, tmp_path):
    net = make_network(CONFIG)
    state = {f"net._orig_mod.{name}": tensor for name, tensor in net.state_dict().items()}
    path = save_checkpoint(tmp_path / "last.ckpt", net, tokenizer, state_dict=state)
    same(net, load_checkpoint(path)[0])


def test_a_run_directory_gives_its_best_then_its_last(make_network, tokenizer, tmp_path):
    nets = [make_network(CONFIG, seed) for seed in range(3)]
    folder = tmp_path / "run" / "version_0" / "checkpoints"
    for age, (name, net) in enumerate(zip(("last.ckpt", "best.ckpt", "step_100.ckpt"), nets)):
        path = save_checkpoint(folder / name, net, tokenizer)
        os.utime(path, (1e9 + age, 1e9 + age))
    same(nets[1], open_model(tmp_path / "run")[0])
    (folder / "best.ckpt").unlink()
    same(nets[0], open_model(str(tmp_path / "run"))[0])
    (folder / "last.ckpt").unlink()
    same(nets[2], open_model(tmp_path / "run")[0])
    (folder / "step_100.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither config\.json"):
        open_model(tmp_path / "run")


def test_a_model_directory_or_a_file_in_it(make_network, tokenizer, tmp_path):
    net = make_network(CONFIG)
    save_model(tmp_path / "model", net, tokenizer)
    same(net, open_model(tmp_path / "model")[0])
    same(net, open_model(tmp_path / "model" / "model.safetensors")[0])


def test_what_does_not_exist():
    with pytest.raises(FileNotFoundError, match=r"runs/none/last\.ckpt does not exist"):
        open_model("runs/none/last.ckpt")


def test_an_unreachable_hub_is_one_line(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="nobody/nothing is neither a file or directory here") as error:
        open_model("nobody/nothing")
    assert "\n" not in str(error.value)


def test_truncated_anywhere_is_said_to_be_so(make_network, tokenizer, tmp_path):
    path = save_checkpoint(tmp_path / "last.ckpt", make_network(CONFIG), tokenizer)
    content = path.read_bytes()
    for part in (0.01, 0.3, 0.6, 0.9, 0.999):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(ValueError, match=r"last\.ckpt is truncated or damaged") as error:
            open_model(path)
        assert "\n" not in str(error.value)


FOREIGN = [
    (b"", "is empty"),
    (b"GGUF\x03\x00\x00\x00", "GGUF"),
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    (b"<html>404</html>", "is text"),
    (b"\x80\x02}q\x00.", "before 1.6"),
    (b'\x40\x00\x00\x00\x00\x00\x00\x00{"a": 1}', "safetensors"),
    (b"\x1f\x8b\x08", "not a file that torch.save wrote"),
]


@pytest.mark.parametrize(("content", "message"), FOREIGN)
def test_foreign_files_are_called_what_they_are(content, message, tmp_path):
    path = tmp_path / "some.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        open_model(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}, "model_args": {}}, "nanoGPT"),
        ({"pytorch-lightning_version": "2.0", "state_dict": {}}, "Lightning checkpoint of another program"),
        ({"weight": torch.ones(2)}, "bare state_dict"),
        ({"epoch": 3}, "keys epoch"),
        ([1, 2], "holds a list"),
    ],
)
def test_foreign_checkpoints_are_called_what_they_are(content, message, tmp_path):
    torch.save(content, tmp_path / "some.ckpt")
    with pytest.raises(ValueError, match=message):
        open_model(tmp_path / "some.ckpt")


def test_missing_weights_and_newer_formats_are_named(make_network, tokenizer, tmp_path):
    net = make_network(CONFIG)
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    state.pop("net.final_norm.weight")
    path = save_checkpoint(tmp_path / "some.ckpt", net, tokenizer, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks weight\(s\) final_norm\.weight"):
        open_model(path)
    path = save_checkpoint(path, net, tokenizer, lightning_gpt={"format": 9, "model": {}})
    with pytest.raises(ValueError, match="checkpoint format 9"):
        open_model(path)
