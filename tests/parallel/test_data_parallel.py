"""The knobs of data-parallel training change what travels and when, and only compression what is learnt."""

import os
import subprocess
import sys
from contextlib import ExitStack

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from lightning_gpt.callbacks.checkpoints import LastCheckpoint
from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.cli.training import TRAINER_DEFAULTS
from lightning_gpt.data import TokenData
from lightning_gpt.hub import load_checkpoint
from lightning_gpt.nn import GPTConfig
from lightning_gpt.optim import AdamW, Constant
from lightning_gpt.parallel.collectives import recorded_collectives
from lightning_gpt.parallel.data_parallel import DataParallel
from lightning_gpt.tasks import Pretraining

WORLD = 2


class Watch(Callback):
    """Collectives of every backward pass, and of the whole training."""

    def __init__(self):
        self.backwards = []
        self._stack, self._whole_stack = ExitStack(), ExitStack()

    def on_train_start(self, trainer, pl_module):
        self.whole = self._whole_stack.enter_context(recorded_collectives())

    def on_train_end(self, trainer, pl_module):
        self._whole_stack.close()

    def on_before_backward(self, trainer, pl_module, loss):
        self.backwards.append(self._stack.enter_context(recorded_collectives()))

    def on_after_backward(self, trainer, pl_module):
        self._stack.close()


class CountedSaves(LastCheckpoint):
    """How often it saved."""

    saves = 0

    def save_now(self, trainer, final=False):
        self.saves += 1
        return super().save_now(trainer, final)


def trained(corpus, strategy, steps=3, accumulate=1, callbacks=()):
    """Weights after some steps of Pretraining, the collectives of each backward pass, and all of them."""
    seed_everything(1, verbose=False)
    config = GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=32)
    task = Pretraining(config, AdamW(lr=0.01), Constant())
    watch = Watch()
    settings = TRAINER_DEFAULTS | {"max_steps": steps, "limit_val_batches": 0, "accumulate_grad_batches": accumulate}
    quiet = {
        "logger": False,
        "enable_checkpointing": bool(callbacks),
        "enable_progress_bar": False,
        "callbacks": [watch, *callbacks],
    }
    trainer = Trainer(accelerator="cpu", devices=WORLD, strategy=strategy, **settings, **quiet)
    trainer.fit(task, TokenData(str(corpus), batch_size=4, block_size=16))
    weights = {name: value.detach().clone() for name, value in task.net.named_parameters()}
    return weights, watch.backwards, watch.whole


EXACT = {
    "copies": {"gradient_as_bucket_view": False},
    "views": {},
    "small_buckets": {"bucket_cap_mb": 0.02},
    "no_overlap": {"overlap": False},
    "static_graph": {"static_graph": True},
    "unused": {"find_unused_parameters": True},
    "buffers": {"broadcast_buffers": True},
}


def train_with_every_knob(corpus, place):
    found = {"stock": trained(corpus, DDPStrategy())}
    found |= {name: trained(corpus, DataParallel(**knobs)) for name, knobs in EXACT.items()}
    found["stock_accumulated"] = trained(corpus, DDPStrategy(), accumulate=4)
    found["accumulated"] = trained(corpus, DataParallel(bucket_cap_mb=0.02), accumulate=4)
    found["synchronised"] = trained(corpus, DataParallel(bucket_cap_mb=0.02, sync_micro_batches=True), accumulate=4)
    for compression in ("fp16", "bf16"):
        found[compression] = trained(corpus, DataParallel(bucket_cap_mb=0.02, compression=compression))
    powersgd = DataParallel(bucket_cap_mb=0.02, compression="powersgd", powersgd_rank=2, powersgd_start_step=2)
    found["powersgd"] = trained(corpus, powersgd, steps=4)
    for name, minutes in (("seldom_saved", 1e3), ("often_saved", 1e-6)):
        saver = CountedSaves(every_n_minutes=minutes, dirpath=str(place / name))
        found[name] = (*trained(corpus, DataParallel(), steps=6, callbacks=[saver]), saver.saves)
    return found


FOUND = {}


@pytest.fixture
def runs(processes, corpus, tmp_path):
    """By name: weights and collectives of the first process; both processes have the same weights. Trained once."""
    if not FOUND:
        first, second = (one.value for one in processes(WORLD, lambda rank: train_with_every_knob(corpus, tmp_path)))
        for name, (weights, *_) in first.items():
            assert all(torch.equal(weights[key], second[name][0][key]) for key in weights), name
        FOUND.update(first)
    return FOUND


def size(weights):
    return 4 * sum(value.numel() for value in weights.values())


@pytest.mark.parametrize("name", EXACT)
def test_exact_knobs_give_stock_weights(runs, name):
    for key, value in runs["stock"][0].items():
        assert torch.equal(runs[name][0][key], value), key


def test_buckets_follow_their_size(runs):
    weights, backwards, _ = runs["small_buckets"]
    largest = max(value.numel() for value in weights.values()) * 4
    cap = 0.02 * 2**20
    buckets = backwards[-1]
    assert {one.name for one in buckets} == {"all_reduce"} and {one.dtype for one in buckets} == {"Float"}
    assert buckets.bytes == size(weights)
    # A bucket is closed by the tensor that fills it; the last one takes what is left.
    assert all(cap <= one.bytes < cap + largest for one in buckets[:-1])
    assert len(buckets) >= 4
    for name in ("views", "no_overlap"):  # torch's first bucket of 1 MiB holds this network
        assert [one.bytes for one in runs[name][1][-1]] == [size(weights)]


def test_accumulation_reduces_once(runs):
    for step in range(3):
        silent, last = runs["accumulated"][1][4 * step : 4 * step + 3], runs["accumulated"][1][4 * step + 3]
        assert silent == [[], [], []]
        assert last.bytes == size(runs["accumulated"][0])
    every = runs["synchronised"][1]
    assert len(every) == 12 and all(one.bytes == size(runs["accumulated"][0]) for one in every)
    for key, value in runs["stock_accumulated"][0].items():
        assert torch.equal(runs["accumulated"][0][key], value)
        # Gradients are rounded in other places.
        assert torch.allclose(runs["synchronised"][0][key], value, atol=1e-4)


@pytest.mark.parametrize(("compression", "dtype"), [("fp16", "Half"), ("bf16", "BFloat16")])
def test_16_bits_halve_the_bytes(runs, compression, dtype):
    exact, compressed = runs["small_buckets"][1][-1], runs[compression][1][-1]
    assert len(compressed) == len(exact)
    assert compressed.bytes * 2 == exact.bytes
    assert {one.dtype for one in compressed} == {dtype}


def test_powersgd_sends_factors(runs):
    weights, backwards, _ = runs["powersgd"]
    assert [one.bytes for one in backwards[:2]] == [size(weights)] * 2  # exact until its start
    buckets = len(backwards[1])
    assert len(backwards[-1]) == 3 * buckets > 9  # what is not compressed, P, Q
    assert backwards[-1].bytes < size(weights) / 4


def test_ranks_seldom_ask_whether_to_save(runs):
    """Rank 0's clock decides, by a broadcast of bytes that would else be sent in every step."""
    *_, seldom, saves = runs["seldom_saved"]
    assert saves == 1 and len([one for one in seldom.named("broadcast") if one.dtype == "Byte"]) == 1
    *_, often, saves = runs["often_saved"]
    assert saves == 7 and len([one for one in often.named("broadcast") if one.dtype == "Byte"]) >= 6


def wrapped(net, bucket_cap_mb, compression, **knobs):
    """DDP around a bare network with the strategy's communication hook."""
    model = DistributedDataParallel(net, bucket_cap_mb=bucket_cap_mb)
    if hook := DataParallel(compression=compression, powersgd_start_step=2, **knobs).communication_hook():
        model.register_comm_hook(*hook)
    return model


def gradient_sums(compression, steps, **knobs):
    """Sum of each weight's gradients over some backward passes of a small network on random rows."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 64))
    model = wrapped(net, 0.02, compression, **knobs)
    generator = torch.Generator().manual_seed(dist.get_rank())
    total = [torch.zeros_like(parameter) for parameter in net.parameters()]
    for _ in range(steps):
        net.zero_grad()
        x_BC = torch.randn(16, 64, generator=generator)
        (model(x_BC) - x_BC.flip(1)).square().mean().backward()
        torch._foreach_add_(total, [parameter.grad for parameter in net.parameters()])
    return total


def gradient_errors(rank):
    """Largest relative error of a weight's gradient."""
    dist.init_process_group("gloo")

    def error(exact, compression, steps, **knobs):
        compressed = gradient_sums(compression, steps, **knobs)
        return max(float((a - b).norm() / a.norm()) for a, b in zip(exact, compressed, strict=True))

    one, many = gradient_sums("none", 1), gradient_sums("none", 40)
    found = {name: error(one, name, 1) for name in ("fp16", "bf16")}
    return found | {f"powersgd_{rank}": error(many, "powersgd", 40, powersgd_rank=rank) for rank in (1, 4, 64)}


def test_compressed_gradients_are_close(processes):
    for error in (one.value for one in processes(WORLD, gradient_errors)):
        # Halves of the spacing at 1, once for each rank's own gradient and once for the sum.
        assert 0 < error["fp16"] < 2 * 2**-11
        assert 0 < error["bf16"] < 2 * 2**-8
        # Error feedback: over 40 steps what is left out of one comes with the next.
        assert error["powersgd_64"] < 1e-4 < error["powersgd_4"] < error["powersgd_1"] < 0.8


def linear_fit(compression):
    """What is left of a matrix' squared error after descending it by gradients of two processes, each with half of the
    rows. It begins at about 30."""
    torch.manual_seed(0)
    true, x_BC = torch.randn(32, 32) / 6, torch.randn(64, 32)
    net = torch.nn.Sequential(torch.nn.Linear(32, 32, bias=False), torch.nn.Linear(32, 32, bias=False))
    model = wrapped(net, 0.004, compression, powersgd_rank=4)  # 28 of 32 directions left out of each step
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    mine = slice(dist.get_rank(), None, WORLD)
    for _ in range(500):
        optimizer.zero_grad()
        loss = (model(x_BC[mine]) - x_BC[mine] @ true).square().sum(1).mean() / 4
        loss.backward()
        optimizer.step()
    return loss.item()


def fits(rank):
    dist.init_process_group("gloo")
    return linear_fit("none"), linear_fit("powersgd")


def test_powersgd_converges(processes):
    for exact, compressed in (one.value for one in processes(WORLD, fits)):
        assert exact < 1e-3 and compressed < 1e-3


def test_contradictions_are_refused(lightning_gpt, capsys):
    for settings, message in (
        ({"bucket_cap_mb": 0}, "bucket_cap_mb=0 must be positive"),
        ({"bucket_cap_mb": 5, "overlap": False}, "bucket_cap_mb=5 has no meaning with overlap=false"),
        ({"compression": "int8"}, "compression='int8' is unknown: use none, fp16, bf16, powersgd"),
        ({"powersgd_rank": 0}, "powersgd_rank=0 must be at least 1"),
        ({"threads_per_process": 0}, "threads_per_process=0 must be at least 1"),
        ({"powersgd_start_step": 1}, "powersgd_start_step=1 must be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            DataParallel(**settings)
    with pytest.raises(SystemExit) as stop:
        lightning_gpt("fit", trainer(static_graph=True), "--trainer.accumulate_grad_batches", 2)
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "lightning-gpt: error: trainer.strategy.static_graph=true cannot accumulate (trainer.accumulate_grad_batches="
        "2): set static_graph to false\n"
    )


def trainer(**knobs):
    """A trainer's YAML of two processes."""
    strategy = {"class_path": "lightning_gpt.parallel.data_parallel.DataParallel", "init_args": knobs}
    return {"trainer": {"devices": WORLD, "strategy": strategy}}


def test_every_launcher_trains_alike(lightning_gpt, processes, recipe, tmp_path, one_thread):
    """Forked by Lightning, started by torchrun, and started by Lightning as commands of their own."""
    options = ("--trainer.max_steps", 4, "--data.batch_size", 2)
    torchrun = tmp_path / "torchrun.yaml"
    torchrun.write_text(yaml.safe_dump(trainer()))
    started = ["fit", "-c", recipe, "-c", torchrun, *options]
    processes(WORLD, [*started, "--run.name", "torchrun"])
    command = [sys.executable, "-m", "lightning_gpt", *map(str, started), "--run.name", "popen"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120, capture_output=True)
    volume = "--trainer.callbacks+=lightning_gpt.callbacks.CollectiveVolume"
    lightning_gpt("fit", trainer(start_method="fork"), *options, "--run.name", "fork", volume)
    losses = {}
    for name in ("torchrun", "popen", "fork"):
        rows = read_metrics(tmp_path / "runs" / name / "version_0" / "metrics.jsonl")
        losses[name] = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses["fork"]) == 4
    assert losses["fork"] == losses["torchrun"] == losses["popen"]
    volumes = [row["communication/mib"] for row in rows if "communication/mib" in row]
    net, _ = load_checkpoint(tmp_path / "runs" / "fork" / "version_0" / "checkpoints" / "last.ckpt")
    gradients = sum(4 * weight.numel() for weight in net.parameters())
    assert len(volumes) == 4  # little but the gradients
    assert all(1 < volume * 2**20 / gradients < 1.02 for volume in volumes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpus_train_with_every_compression(lightning_gpt):
    """Through NCCL, on as many GPUs as there are; the recorder sees what they send."""
    volumes = {}
    for compression in ("none", "bf16", "powersgd"):
        strategy = trainer(compression=compression, powersgd_start_step=2)
        strategy["trainer"] |= {"devices": torch.cuda.device_count(), "accelerator": "gpu", "precision": "bf16-mixed"}
        run = lightning_gpt("fit", strategy, "--trainer.callbacks+=lightning_gpt.callbacks.CollectiveVolume")
        rows = read_metrics(run / "metrics.jsonl")
        volumes[compression] = [row["communication/mib"] for row in rows if "communication/mib" in row][-1]
    assert 0.49 < volumes["bf16"] / volumes["none"] < 0.52
    assert volumes["powersgd"] < volumes["none"] / 4
