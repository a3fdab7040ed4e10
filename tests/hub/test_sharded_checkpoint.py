"""What a sharded checkpoint is used for outside training."""

import json

import pytest
import torch

from lightning_gpt.callbacks import AtomicCheckpointIO
from lightning_gpt.cli import main
from lightning_gpt.hub import open_model
from lightning_gpt.hub.checkpoint import read_checkpoint


@pytest.fixture
def run(lightning_gpt):
    """A run whose last.ckpt is sharded; best.ckpt holds the same weights as a whole file."""
    run = lightning_gpt("fit")
    last = run / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(torch.load(last, weights_only=True), last, {"sharded": True})
    assert last.is_dir()
    return run


def test_it_is_used_as_a_whole_file_is(run, tmp_path, capsys):
    last, best = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt"
    nets = [open_model(path)[0].state_dict() for path in (best, last, last.resolve(), str(last) + "/")]
    for net in nets[1:]:
        assert all(torch.equal(net[name], tensor) for name, tensor in nets[0].items())
    told = []
    for path in (best, last):
        capsys.readouterr()
        main(["generate", str(path), "--prompt", "to be", "--max_new_tokens", "8", "--seed", "1"])
        main(["inspect", str(path)])
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    main(["export", str(last), "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "config.json").read_text())
    exported = open_model(tmp_path / "out")[0].state_dict()
    assert all(torch.equal(exported[name], tensor) for name, tensor in nets[0].items())
    best.unlink()
    assert open_model(run)[0].config.n_layer == 2  # finds last.ckpt, and takes last.ckpt.1 for no checkpoint of its own


def test_tensors_stay_on_disk_until_they_are_asked_for(run):
    content = read_checkpoint(run / "checkpoints" / "last.ckpt")
    state, whole = content["state_dict"], read_checkpoint(run / "checkpoints" / "best.ckpt")["state_dict"]
    assert list(state) == list(whole) or set(state) == set(whole)
    name = "net.token_embedding.weight"
    assert state.shape(name) == whole[name].shape
    assert torch.equal(state[name], whole[name])
    half = torch.empty_like(whole[name], dtype=torch.bfloat16)
    state.read_into({name: half})
    assert torch.equal(half, whole[name].bfloat16())
    with pytest.raises(ValueError, match="cannot be read"):
        state.read_into({name: torch.empty(2, 2)})


def test_directories_that_are_no_checkpoints(run, tmp_path):
    with pytest.raises(ValueError, match=r"neither \.metadata nor meta\.pt"):
        read_checkpoint(run)
    last = run / "checkpoints" / "last.ckpt"
    directory = last.resolve()
    directory.rename(directory.with_name("elsewhere"))
    with pytest.raises(
        FileNotFoundError, match=r"last.ckpt points to last.ckpt.1, which is gone; .*best.ckpt is whole"
    ):
        open_model(last)
