"""The whole: peaks, levers, the largest batch, budgets, and one real run."""

import gc
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from torch.profiler import ProfilerActivity, profile, record_function

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.optim import SGD, AdamW, AdamW8bit, InBackward
from lightning_gpt.parallel.memory_size import parse_memory
from lightning_gpt.parallel.recompute import recompute
from lightning_gpt.planning.memory_figure import draw_memory
from lightning_gpt.planning.memory_job import TrainingJob
from lightning_gpt.planning.memory_levers import levers
from lightning_gpt.planning.memory_overhead import largest_batch, plan_memory
from lightning_gpt.planning.memory_peak import BACKWARD, FORWARD, RECOMPUTED, STEP, VALIDATION, moments

CONFIG = GPTConfig(vocab_size=84, block_size=128, n_layer=4, n_head=4, n_embd=128, bias=False)
JOB = TrainingJob(CONFIG, 16, 128)
MiB = 1 << 20


def total(job: TrainingJob, name: str) -> float:
    return next(moment.total for moment in moments(job) if moment.name == name)


def live_peaks(job: TrainingJob) -> dict[str, float]:
    """Bytes that PyTorch's allocator has given out at most in the two passes of a second step, as the profiler books
    them, with the gradients of the step before until the backward pass."""
    import torch

    torch.manual_seed(0)
    net = GPT(job.config)
    recompute(net, job.activation_checkpointing)
    optimizer = job.optimizer.build(net)
    optimizer = InBackward(optimizer) if job.steps_in_backward else optimizer

    def both_passes():
        ids = torch.randint(job.config.vocab_size, (job.batch_size, job.block_size))
        with torch.autocast("cpu", torch.bfloat16, enabled=job.bytes.autocast):
            loss = net.loss(ids, ids.roll(1))[0]
        with record_function("BACKWARD"):
            loss.backward()

    both_passes()
    optimizer.step()
    optimizer.zero_grad()
    weights = sum(parameter.nbytes for parameter in net.parameters())
    states = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    gc.collect()  # what is freed while the profiler looks, but came before, would count as less
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        both_passes()
    events = sorted(found.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held, peaks, phase = weights + states, {FORWARD: 0.0, BACKWARD: 0.0}, FORWARD
    for event in events:
        phase = BACKWARD if event.name() == "BACKWARD" else phase
        if event.name() == "[memory]":
            held += event.nbytes()
            peaks[phase] = max(peaks[phase], held)
    return peaks | {FORWARD: peaks[FORWARD] + (0 if job.steps_in_backward else weights)}


@pytest.mark.parametrize(
    "job",
    [
        JOB,
        replace(JOB, precision="bf16-mixed"),
        replace(JOB, config=replace(CONFIG, vocab_size=20_000), batch_size=8),
        replace(JOB, config=replace(CONFIG, n_kv_head=1, position="rotary", norm="rmsnorm", feed_forward="swiglu")),
    ],
    ids=["gpt", "autocast", "large vocabulary", "llama"],
)
def test_tensors_are_those_that_the_profiler_sees(job):
    peaks = live_peaks(replace(job, val_batch_size=0))
    assert total(job, FORWARD) == pytest.approx(peaks[FORWARD], rel=0.1)
    backward = max(moment.total for moment in moments(job) if "backward" in moment.name)
    assert backward == pytest.approx(peaks[BACKWARD], rel=0.1)


def test_a_checkpointed_backward_pass_holds_one_block():
    job = replace(JOB, activation_checkpointing=1)
    assert total(job, RECOMPUTED) == pytest.approx(live_peaks(job)[BACKWARD], rel=0.1)
    some = replace(JOB, activation_checkpointing=2, config=replace(CONFIG, n_layer=6))
    backward = max(total(some, name) for name in (BACKWARD, RECOMPUTED))
    assert backward == pytest.approx(live_peaks(some)[BACKWARD], rel=0.1)


@pytest.mark.parametrize("setting", ["selective", "attention", "feed_forward", 0.5])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_fullest_moment_of_partly_checkpointed_networks(setting, precision):
    # The insides of a recomputed block are there in its forward pass too, one after the other: no moment of its own.
    job = replace(JOB, activation_checkpointing=setting, precision=precision, val_batch_size=0)
    assert max(moment.total for moment in moments(job)) == pytest.approx(max(live_peaks(job).values()), rel=0.1)


def test_a_step_in_the_backward_pass_holds_no_gradients():
    wide = replace(JOB, config=replace(CONFIG, n_embd=512), batch_size=1)
    for changed in ({}, {"activation_checkpointing": "full"}):
        job, plain = (replace(wide, optimizer=AdamW(in_backward=flag), **changed) for flag in (True, False))
        peaks = live_peaks(job)
        assert total(job, FORWARD) == pytest.approx(peaks[FORWARD], rel=0.1)
        backward = max(moment.total for moment in moments(job) if "backward" in moment.name)
        assert backward == pytest.approx(peaks[BACKWARD], rel=0.1)
        gradients = 4 * sum(one.numel() for one in GPT(wide.config).parameters())
        assert total(plain, FORWARD) - total(job, FORWARD) == gradients
    with pytest.raises(ValueError, match="it takes one micro-batch, on one device or sharded"):
        replace(job, accumulate=2)


def test_the_moment_of_the_peak():
    assert plan_memory(JOB).peak.name in (FORWARD, BACKWARD)
    assert plan_memory(replace(JOB, activation_checkpointing=1)).peak.name == RECOMPUTED
    assert plan_memory(replace(JOB, val_batch_size=512)).peak.name == VALIDATION
    assert VALIDATION not in [moment.name for moment in moments(replace(JOB, val_batch_size=0))]
    parts = plan_memory(JOB).parts()
    assert sum(parts.values()) == pytest.approx(plan_memory(JOB).total)
    assert total(JOB, STEP) == sum(parts.get(name, 0) for name in ("weights", "optimizer", "batches")) + 4 * sum(
        one.numel() for one in GPT(CONFIG).parameters()
    )


def test_the_largest_batch_fits_and_one_more_does_not():
    for job in (JOB, replace(JOB, precision="bf16-mixed", activation_checkpointing=1), replace(JOB, device="cuda")):
        rows = largest_batch(job, 4 << 30)
        assert plan_memory(replace(job, batch_size=rows)).total <= 4 << 30
        assert plan_memory(replace(job, batch_size=rows + 1)).total > 4 << 30
    assert largest_batch(JOB, 100 * MiB) == 0


def test_levers_are_sorted_and_are_plans_of_changed_runs():
    job = replace(JOB, config=replace(CONFIG, tie_embeddings=False, dropout=0.1), val_batch_size=64)
    plan = plan_memory(job)
    found = levers(plan)
    assert [lever.saved for lever in found] == sorted((lever.saved for lever in found), reverse=True)
    by_name = {lever.name: lever for lever in found}
    assert {"recompute every block", "everything in bfloat16", "products in bfloat16", "one state a matrix"} <= set(
        by_name
    )
    assert {"head tied to the embedding", "no dropout", "1 key/value head", "micro-batches of 8"} <= set(by_name)
    for lever in found:
        assert lever.plan.total + lever.saved == pytest.approx(plan.total)
        assert plan_memory(lever.plan.job).total == lever.plan.total
    again = by_name["recompute every block"].plan
    assert again.job == replace(job, activation_checkpointing="full")
    split = by_name["micro-batches of 8"].plan.job
    assert split.batch_size * split.accumulate == job.batch_size
    assert by_name["optimizer in the backward pass"].plan.job.steps_in_backward and not job.steps_in_backward
    assert by_name["recompute what is cheap"].plan.job.activation_checkpointing == "selective"
    # A lever that is pulled already is not offered.
    assert "recompute every block" not in {lever.name for lever in levers(again)}


def test_sharding_divides_what_lasts():
    job = replace(JOB, config=replace(CONFIG, n_layer=24, n_embd=512), batch_size=1, device="cuda")
    sharded = replace(job, strategy="fsdp", devices=8)
    (one,), (eighth,) = ([m for m in moments(a) if m.name == STEP] for a in (job, sharded))
    for name in ("weights", "gradients", "optimizer"):
        assert eighth.parts[name] == pytest.approx(one.parts[name] / 8, rel=0.05)
    assert plan_memory(replace(job, strategy="ddp", devices=8)).total > plan_memory(job).total


def test_smaller_states_make_smaller_plans():
    assert plan_memory(replace(JOB, optimizer=SGD(momentum=0))).total < plan_memory(JOB).total
    big = replace(JOB, config=replace(CONFIG, n_layer=24, n_embd=512), batch_size=1, device="cuda")
    assert plan_memory(replace(big, optimizer=AdamW8bit())).total < plan_memory(big).total


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 << 30), ("80GB", 80 * 10**9), (" 1.5 gib ", 3 << 29), ("512MiB", 512 * MiB)]
)
def test_budgets(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("24", "must be a number with a unit, such as 24GiB"),
        ("24 elephants", "must be a number with a unit"),
        ("0GiB", "must be positive"),
        ("-8GB", "must be positive"),
    ],
)
def test_absurd_budgets(text, message):
    with pytest.raises(ValueError, match=message):
        parse_memory(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"devices": 0}, "devices=0 must be at least 1"),
        ({"batch_size": -1}, "batch_size=-1 must be at least 1"),
        ({"activation_checkpointing": -1}, "activation_checkpointing=-1 must be 0 .off. or a positive count"),
        ({"strategy": "fdsp"}, "strategy='fdsp' is unknown, did you mean 'fsdp'"),
        ({"precision": "bf16-mix"}, "precision='bf16-mix' is unknown, did you mean 'bf16-mixed'"),
        ({"device": "cdua"}, "device='cdua' is unknown, did you mean 'cuda'"),
        ({"devices": 2}, "devices=2 with strategy=single: use strategy=ddp or fsdp"),
        ({"block_size": 256}, "block_size=256 exceeds the network's 128"),
    ],
)
def test_absurd_runs(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(JOB, **fields)


def test_the_picture(tmp_path):
    plan = plan_memory(JOB)
    path = draw_memory(tmp_path / "deep" / "memory.png", plan, levers(plan), 4 << 30)
    assert path.read_bytes().startswith(b"\x89PNG") and [one.name for one in path.parent.iterdir()] == ["memory.png"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the heap's constants are glibc's")
def test_a_real_run_is_within_a_tenth(tmp_path, corpus):
    network = {"n_layer": 4, "n_head": 4, "n_embd": 256, "bias": False}
    settings = {
        "run": {"name": "memory", "dir": str(tmp_path), "tensorboard": False},
        "model": {"class_path": "lightning_gpt.tasks.Pretraining", "init_args": {"config": network}},
        "data": {
            "class_path": "lightning_gpt.data.TokenData",
            "init_args": {"data_dir": str(corpus), "batch_size": 48, "block_size": 128},
        },
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 3, "limit_val_batches": 1},
        "samples": {"tokens": 0},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    # A small process between: the system books what a child's parent held for the child.
    code = (
        "import os, subprocess, sys; one = subprocess.Popen([sys.executable, '-m', 'lightning_gpt', 'fit', '-c', "
        "sys.argv[1]], stdout=2); _, status, usage = os.wait4(one.pid, 0); print(status, usage.ru_maxrss)"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=True)
    status, kibibytes = map(int, done.stdout.split())
    assert status == 0, done.stderr
    from lightning_gpt.cli.memory_settings import training_job
    from lightning_gpt.cli.settings_check import parsed_settings

    job = training_job(parsed_settings([path]))
    assert job.tokens == 48 * 128
    assert plan_memory(job, imported=_imported()).total == pytest.approx(1024 * kibibytes, rel=0.1)


def _imported() -> int:
    """Resident memory of a fresh process that imports what fit does: it depends on how torch was built."""
    code = "import lightning_gpt.cli.training, psutil; print(psutil.Process().memory_info().rss)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)
