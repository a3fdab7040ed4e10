import os
import resource
import shutil
import sys
from pathlib import Path

import pytest
import torch

from lightning_gpt.callbacks import AtomicCheckpointIO
from lightning_gpt.callbacks.checkpoint_io import SaveError
from lightning_gpt.hub.checkpoint import read_checkpoint
from lightning_gpt.hub.integrity import DamagedError, restore_pointer, verify

WHOLE, SHARDED = {}, {"sharded": True}
CHANGES = ("open", "os.rename", "os.remove", "os.symlink", "os.link", "os.mkdir", "os.rmdir", "shutil.rmtree")
"""Python's audit events before what changes a directory."""


def checkpoint(step: int, size: int = 40) -> dict:
    """With what Lightning puts into one, tied weights and a state that is no tensor."""
    weight = torch.full((size, 3), float(step))
    state = {0: {"step": torch.tensor(float(step)), "exp_avg": weight / 2, "flag": step}}
    return {
        "global_step": step,
        "state_dict": {"net.a": weight, "net.b": weight, "net.c": torch.arange(5)},
        "optimizer_states": [{"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "callbacks": {"x": {"rank": [1, 2]}},
    }


def same(path: Path, step: int) -> None:
    """The file is the checkpoint of this step in every part, read back as training and as others read it."""
    verify(path)
    wanted = checkpoint(step)
    for content in (AtomicCheckpointIO().load_checkpoint(path), read_checkpoint(path)):
        assert {k: v for k, v in content.items() if k not in ("state_dict", "optimizer_states")} == {
            "global_step": step,
            "callbacks": wanted["callbacks"],
        }
        assert content["state_dict"].keys() == wanted["state_dict"].keys()
        for name, tensor in wanted["state_dict"].items():
            assert torch.equal(content["state_dict"][name], tensor)
        (optimizer,) = content["optimizer_states"]
        assert optimizer["param_groups"] == [{"lr": 0.1, "params": [0]}]
        assert torch.equal(optimizer["state"][0]["exp_avg"], wanted["optimizer_states"][0]["state"][0]["exp_avg"])


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("before", [WHOLE, SHARDED], ids=["whole", "sharded"])
@pytest.mark.parametrize("after", [WHOLE, SHARDED], ids=["whole", "sharded"])
def test_each_kind_replaces_each(before, after, tmp_path):
    io, target = AtomicCheckpointIO(), tmp_path / "a" / "x.ckpt"
    io.save_checkpoint(checkpoint(1), target, before)
    same(target, 1)
    (tmp_path / "a" / ".x.ckpt.123.tmp").write_bytes(b"left by a killed process")
    io.save_checkpoint(checkpoint(2), target, {**after, "previous": "previous.ckpt"})
    same(target, 2)
    same(target.with_name("previous.ckpt"), 1)
    io.save_checkpoint(checkpoint(3), target, {**after, "asynchronous": True})
    io.wait()
    same(target, 3)
    same(target.with_name("previous.ckpt"), 1)
    io.save_checkpoint(checkpoint(4), target, after | {"previous": "previous.ckpt"})
    same(target.with_name("previous.ckpt"), 3)
    directories = [path for path in target.parent.iterdir() if path.is_dir() and not path.is_symlink()]
    assert len(directories) == (2 if after else 0), "nothing is kept to which no name points"
    assert len(names(target.parent)) == 2 + len(directories)
    io.remove_checkpoint(target)
    io.remove_checkpoint(target.with_name("previous.ckpt"))
    assert names(target.parent) == []


def killed_at(event: int, io: AtomicCheckpointIO, target: Path, options: dict) -> bool:
    """Saves step 2 in a forked process that dies before its n-th change to a directory; whether it died."""
    child = os.fork()
    if child == 0:
        left = event

        def die(name: str, arguments: tuple) -> None:
            nonlocal left
            if name in CHANGES and not (name == "open" and isinstance(arguments[1], str) and "r" in arguments[1]):
                left -= 1
                if left == 0:
                    os._exit(9)

        try:
            sys.addaudithook(die)
            io.save_checkpoint(checkpoint(2), target, options)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] != 0


@pytest.mark.parametrize("before", [None, WHOLE, SHARDED, "a copy of a link"], ids=str)
@pytest.mark.parametrize("after", [WHOLE, SHARDED], ids=["whole", "sharded"])
def test_killed_at_any_moment_the_old_or_the_new_is_there(before, after, one_thread, tmp_path):
    io, options = AtomicCheckpointIO(), {**after, "previous": "previous.ckpt"}
    start = tmp_path / "start" / "last.ckpt"
    start.parent.mkdir()
    if before is not None:
        io.save_checkpoint(checkpoint(1), start, SHARDED if isinstance(before, str) else before)
        if isinstance(before, str):
            link = start.parent / start.readlink()
            start.unlink()
            link.rename(start)
    io.save_checkpoint(checkpoint(9), tmp_path / "imported" / "x.ckpt", after)
    event, found = 0, set()
    while event < 100:
        event += 1
        target = tmp_path / str(event) / "last.ckpt"
        shutil.copytree(start.parent, target.parent, symlinks=True)
        died = killed_at(event, io, target, options)
        restore_pointer(target)  # as --ckpt_path last does
        step = read_checkpoint(target)["global_step"] if target.exists() else 0
        found.add(step)
        assert step in (0, 1, 2) if before is None else step in (1, 2), f"change {event}"
        if step:
            same(target, step)
        io.save_checkpoint(checkpoint(3), target, after)  # the run that is continued
        same(target, 3)
        kept = target.with_name("previous.ckpt")
        if kept.exists():
            same(kept, 1 if before is not None else 2)
        assert not [name for name in names(target.parent) if name.endswith(".tmp")]
        shutil.rmtree(target.parent)
        if not died:
            break
    assert 4 < event < 100
    assert found == ({0, 2} if before is None else {1, 2})


def largest_file(path: Path) -> Path:
    return max(path.iterdir(), key=lambda file: file.stat().st_size) if path.is_dir() else path


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(b"\x00\x00\x80?" * 8)] ^= 1  # in the ones of a weight
    file.write_bytes(content)


def halve(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("kind", [WHOLE, SHARDED], ids=["whole", "sharded"])
@pytest.mark.parametrize("harm", [flip, halve, Path.unlink])
def test_damage_is_found_and_the_file_named(kind, harm, tmp_path):
    io, target = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(2), target.with_name("best.ckpt"), kind)
    io.save_checkpoint(checkpoint(1, size=900), target, kind)
    harmed = largest_file(target)
    harm(harmed)
    with pytest.raises((DamagedError, FileNotFoundError)) as refusal:
        io.load_checkpoint(target)
    assert "\n" not in str(refusal.value)
    assert str(harmed) in str(refusal.value)
    assert "best.ckpt is whole: name it instead" in str(refusal.value)
    flip(largest_file(target.with_name("best.ckpt"))) if harm is halve else None
    io.save_checkpoint(checkpoint(3), target, kind)
    same(target, 3)


@pytest.mark.parametrize("lost", [".metadata", "meta.pt", "manifest.json"])
def test_an_incomplete_directory_is_refused(lost, tmp_path):
    io, target = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), target, SHARDED)
    (target / lost).unlink()
    for read in (io.load_checkpoint, read_checkpoint):
        with pytest.raises(ValueError, match=lost):
            read(target)


def test_a_table_of_contents_runs_nothing(tmp_path):
    target = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(1), target, SHARDED)
    (target / ".metadata").write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "harm").encode())
    with pytest.raises(ValueError, match=r"\.metadata is damaged \(os.system has no place"):
        read_checkpoint(target)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("kind", [WHOLE, SHARDED], ids=["whole", "sharded"])
def test_a_failed_save_leaves_the_old_one_and_no_part_of_the_new(kind, tmp_path):
    io, target = AtomicCheckpointIO(), tmp_path / "a" / "last.ckpt"
    io.save_checkpoint(checkpoint(1), target, kind)
    before, limit = names(target.parent), resource.getrlimit(resource.RLIMIT_FSIZE)
    for background in (False, True):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        try:
            with pytest.raises(SaveError, match=r"File too large.*the previous .*last.ckpt is untouched"):
                io.save_checkpoint(checkpoint(2, size=9000), target, kind | {"asynchronous": background})
                io.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert names(target.parent) == before
        same(target, 1)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SaveError, match="no earlier checkpoint exists there"):
        io.save_checkpoint(checkpoint(1), blocked / "x.ckpt", kind)
    shutil.rmtree(target.parent)
    io.save_checkpoint(checkpoint(3), target, kind)
    same(target, 3)


@pytest.mark.parametrize("kind", [WHOLE, SHARDED], ids=["whole", "sharded"])
def test_training_may_go_on_while_a_snapshot_is_written(kind, tmp_path):
    io, target = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    for step in (1, 2):  # the second uses the buffers of the first
        state = checkpoint(step, size=2_000_000)
        io.save_checkpoint(state, target, kind | {"asynchronous": True})
        state["state_dict"]["net.a"].fill_(7)
        state["callbacks"]["x"]["rank"].append(3)
        io.wait()
        content = read_checkpoint(target)
        assert content["callbacks"] == {"x": {"rank": [1, 2]}}
        assert torch.equal(content["state_dict"]["net.b"], torch.full((2_000_000, 3), float(step)))
