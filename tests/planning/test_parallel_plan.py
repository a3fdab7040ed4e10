"""Layouts, the step that is played through, and what is proposed."""

import itertools
from dataclasses import replace

import pytest

from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn.flops import parameters, training_flops_per_token
from lightning_gpt.nn.presets import PRESETS
from lightning_gpt.optim import MuonAdamW
from lightning_gpt.planning.accelerators import Machine, find_accelerator, parse_machine
from lightning_gpt.planning.interconnect import LINKS
from lightning_gpt.planning.memory_job import TrainingJob, inventory
from lightning_gpt.planning.parallel_layout import Cluster, Layout, layouts, make_cluster, tensor_sizes
from lightning_gpt.planning.parallel_memory import job_of, memory_of, sliced
from lightning_gpt.planning.parallel_plan import global_windows, propose, strong_scaling, weak_scaling
from lightning_gpt.planning.parallel_step import predict, slowest
from lightning_gpt.planning.parallel_work import Work

GPT2 = PRESETS["gpt2"]
SMALL = GPTConfig(vocab_size=1000, block_size=256, n_layer=3, n_head=4, n_embd=64, tie_embeddings=False)


def job(config: GPTConfig = GPT2, context: int = 1024, **more) -> TrainingJob:
    settings = {"precision": "bf16-mixed", "device": "cuda", "val_batch_size": 0, "bucket_view": True, **more}
    return TrainingJob(config, 1, context, **settings)


def cluster(gpus: str = "8xA100", interconnect: str | None = None, **more) -> Cluster:
    return make_cluster(parse_machine(gpus), interconnect, **more)


def plain(devices: int, bandwidth: float = 1e9, latency: float = 0.0) -> Cluster:
    """One node of devices of 1 TFLOP/s with a link that disturbs nothing."""
    link = replace(LINKS["loopback"], peak=bandwidth, latency=latency, interference=0.0)
    accelerator = replace(find_accelerator("cpu"), peak_flops=1e12, memory=1e12, bandwidth=1e11)
    return Cluster(Machine(accelerator, devices, 1.0), devices, link, link, 1)


def ddp(devices: int, micro_batch: int = 1, accumulate: int = 1) -> Layout:
    return Layout("ddp", devices, 1, 1, micro_batch, accumulate)


@pytest.mark.parametrize("model", ["gpt2", "gpt2-medium", "llama3-8b", "mixtral-8x7b"])
def test_work_is_the_analytic_count(model):
    config = replace(PRESETS[model], block_size=1024)
    for layout in (ddp(8, 2, 3), Layout("fsdp", 1, 8, 1, 4, 2), Layout("fsdp_tp", 1, 4, 2, 4, 2)):
        if config.moe and layout.tensor > 1:
            continue
        work = Work(job(config), layout, cluster())
        flops = training_flops_per_token(config, 1024) * work.step_tokens
        assert work.model_flops == flops
        assert work.compute == pytest.approx(flops / (8 * 312e12 * 0.4))
        assert sum(work.numbers.values()) == pytest.approx(parameters(config) / layout.tensor, rel=0.01)
    again = Work(job(config), replace(ddp(8), checkpoint_every=1), cluster())
    assert 1 < again.compute / Work(job(config), ddp(8), cluster()).compute < 4 / 3


def test_one_device_alone_neither_sends_nor_waits():
    step = predict(job(), ddp(1), cluster("1xA100"))
    assert (step.exposed, step.waiting, step.communication, step.efficiency) == (0, 0, 0, 1)
    assert step.total == step.compute + step.optimizer


def test_ddp_hides_all_but_what_is_ready_last():
    """A quick link has sent every bucket before the next is full; behind the first block's gradients and the
    embedding's nothing is left to compute."""
    config = GPTConfig(vocab_size=20_000, block_size=256, n_layer=3, n_head=4, n_embd=768)
    base, machine = job(config, 256), plain(2, 1e12)
    sizes = {layer: 4 * numbers for layer, numbers in Work(base, ddp(2, 8), machine).numbers.items()}
    assert sizes[0] > 25 * 2**20
    step = predict(base, ddp(2, 8), machine, 0.0)
    assert step.communication == pytest.approx(sum(sizes.values()) / 1e12)  # 2 (p - 1)/p = 1 for two devices
    assert step.exposed == pytest.approx((sizes[0] + sizes[None]) / 1e12)
    untied = predict(job(replace(config, tie_embeddings=False), 256), ddp(2, 8), machine, 0.0)
    assert untied.exposed == pytest.approx(step.exposed)  # the head's own matrix is ready first


def test_ddp_reduces_once_however_much_is_accumulated():
    once, often = (predict(job(), ddp(8, 4, n), cluster(), 0.0) for n in (1, 10))
    assert often.communication == pytest.approx(once.communication)
    assert often.exposed == pytest.approx(once.exposed)
    assert often.compute == pytest.approx(10 * once.compute)


def test_ddp_on_a_slow_link_is_bound_by_it():
    machine = plain(4, 1e7)
    step = predict(job(SMALL, 256), ddp(4), machine, 0.0)
    gradient = 4 * parameters(SMALL)
    assert step.communication == pytest.approx(2 * 3 / 4 * gradient / 1e7)
    assert step.exposed == pytest.approx(step.communication, rel=0.05)


def test_fsdp_gathers_twice_in_every_pass_and_scatters_when_it_is_told():
    machine = plain(4, 1e7)
    layout = Layout("fsdp", 1, 4, 1, 1, 3)
    step = predict(job(SMALL, 256), layout, machine, 0.0)
    inside = sum(one.numbers * 4 for one in inventory(SMALL)[0] if one.layer is not None)
    outside = 4 * parameters(SMALL) - inside
    scattered = inside + outside
    assert step.communication == pytest.approx(3 / 4 * (3 * (2 * inside + outside) + scattered) / 1e7)
    every = predict(job(SMALL, 256), replace(layout, sync_every=True), machine, 0.0)
    assert every.communication == pytest.approx(step.communication + 2 * 3 / 4 * scattered / 1e7)
    held = [memory_of(job(SMALL, 256), replace(layout, sync_every=one)).parts()["gradients"] for one in (False, True)]
    assert held[0] - held[1] == pytest.approx(3 / 4 * 4 * parameters(SMALL))


def test_tensor_parallelism_reduces_the_stream_on_the_critical_path():
    machine = plain(4, 1e8)
    layout = Layout("tp", 1, 1, 4, 2, 1)
    step = predict(job(SMALL, 256), layout, machine, 0.0)
    stream = 2 * 256 * 64
    # Two a block and pass of bfloat16, one for the head; the embedding's is of float32.
    expected = 2 * 3 / 4 * stream * ((4 * 3 + 1) * 2 + 4) / 1e8
    assert step.communication == pytest.approx(expected)
    assert step.exposed == pytest.approx(expected)
    again = predict(job(SMALL, 256), replace(layout, checkpoint_every=1), machine, 0.0)
    assert again.communication == pytest.approx(2 * 3 / 4 * stream * ((6 * 3 + 1) * 2 + 4) / 1e8)


def test_hsdp_sends_less_between_nodes():
    machine = cluster("32xA100", "nvlink+ethernet-25g")
    base = job(PRESETS["gpt2-xl"])
    sharded = predict(base, Layout("fsdp", 1, 32, 1, 4, 1), machine)
    hybrid = predict(base, Layout("hsdp", 4, 8, 1, 4, 1), machine)
    # Gathered twice and scattered once, 3/4 each; or all-reduced once, 2 x 3/4.
    assert hybrid.communication < 0.75 * sharded.communication


def test_the_slowest_of_many():
    assert slowest(1) == 0
    assert slowest(2) == pytest.approx(0.5642, rel=0.06)  # 1 / sqrt(pi)
    assert slowest(8) == pytest.approx(1.4236, rel=0.02)
    assert slowest(1000) == pytest.approx(3.2414, rel=0.01)


def test_nvlink_keeps_95_percent_and_pcie_80():
    """The figures that are quoted for DDP on eight A100, for the case that planning/parallel_step.py names: GPT-2's
    sizes, 16 windows of 1,024 tokens a device and step, float32 gradients, PyTorch's own buckets."""
    models = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")

    def efficiencies(link: str, windows: int) -> list[float]:
        bases = (job(PRESETS[model], bucket_view=False) for model in models)
        return [predict(base, ddp(8, windows), cluster(interconnect=link)).efficiency for base in bases]

    nvlink, pcie = efficiencies("nvlink", 16), efficiencies("pcie", 16)
    assert sum(nvlink) / 4 == pytest.approx(0.95, abs=0.02) and 0.955 < min(nvlink) < max(nvlink) < 0.975
    assert sum(pcie) / 4 == pytest.approx(0.80, abs=0.03) and 0.75 < min(pcie) < max(pcie) < 0.87
    # Half the work on a device: what is sent stays, so the figures are no property of the link alone.
    assert max(efficiencies("pcie", 8)) < 0.6 and min(efficiencies("nvlink", 8)) > 0.93


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "hsdp", "fsdp_tp"])
def test_weak_and_strong_scaling_to_thousands(strategy):
    base, machine = job(PRESETS["gpt2-xl"]), cluster("64xA100")
    layout = {
        "ddp": ddp(64, 8, 4),
        "fsdp": Layout("fsdp", 1, 64, 1, 8, 4),
        "hsdp": Layout("hsdp", 8, 8, 1, 8, 4),
        "fsdp_tp": Layout("fsdp_tp", 1, 16, 4, 8, 4),
    }[strategy]
    counts = [16, 32, 64, 128, 512, 1024, 4096]
    if strategy == "fsdp_tp":
        base = replace(base, config=replace(base.config, n_head=20))
    weak = weak_scaling(base, layout, machine, counts)
    strong = strong_scaling(base, layout, machine, [n for n in counts if n <= 1024])
    assert [point.devices for point in weak] == counts and len(strong) >= 5
    for points in (weak, strong):
        assert all(0 < point.efficiency <= 1 for point in points)
        assert all(a.efficiency >= b.efficiency for a, b in itertools.pairwise(points))
    for a, b in itertools.pairwise(weak):
        assert b.step.total >= a.step.total  # the work of a device is the same
        assert a.tokens_per_second < b.tokens_per_second
    # NCCL gathers around rings, one message a node: tensor parallelism's short ones are all latency at 512 nodes.
    kept = 0.3 if strategy == "fsdp_tp" else 0.5
    assert weak[-1].tokens_per_second > kept * 4096 / 16 * weak[0].tokens_per_second
    assert strong[-1].efficiency < weak[counts.index(strong[-1].devices)].efficiency
    for a, b in itertools.pairwise(strong):
        assert b.step.compute < a.step.compute


def test_layouts_use_every_device_and_every_window():
    for gpus in ("1xA100", "2xA100", "8xA100", "64xA100"):
        machine = cluster(gpus)
        found = layouts(machine, GPT2, 128)
        assert len({layout.title for layout in found}) == len(found)
        for layout in found:
            assert layout.devices == machine.devices
            assert layout.data * layout.micro_batch * layout.accumulate == 128
    assert {layout.strategy for layout in layouts(cluster("64xA100"), GPT2, 128)} == {"ddp", "fsdp", "hsdp", "fsdp_tp"}
    assert [layout.strategy for layout in layouts(cluster("4xA100"), GPT2, 128)] == ["ddp", "fsdp", "fsdp_tp", "tp"]


def test_tensor_sizes_divide_heads_and_nodes():
    assert tensor_sizes(cluster(), GPT2) == [2, 4]  # 12 heads
    assert tensor_sizes(cluster(), replace(GPT2, n_kv_head=2)) == [2]
    assert tensor_sizes(cluster(), PRESETS["mixtral-8x7b"]) == []


def test_a_slice_holds_its_share():
    config = PRESETS["llama-7b"]
    part = sliced(config, 4)
    assert part.head_size == config.head_size and part.n_embd == config.n_embd
    norms = config.n_embd * (2 * config.n_layer + 1)
    assert parameters(part) - norms == pytest.approx((parameters(config) - norms) / 4)
    assert sliced(config, 1) is config


def test_memory_of_a_device_shrinks_with_its_share():
    base = job(replace(PRESETS["llama-7b"], block_size=2048), 2048)
    eight = {
        "ddp": ddp(8),
        "fsdp": Layout("fsdp", 1, 8, 1, 1, 1),
        "tp": Layout("tp", 1, 1, 8, 1, 1),
        "fsdp_tp": Layout("fsdp_tp", 1, 4, 2, 1, 1),
    }
    parts = {name: memory_of(base, layout).parts() for name, layout in eight.items()}
    for part in ("weights", "optimizer"):
        assert parts["fsdp"][part] == pytest.approx(parts["ddp"][part] / 8, rel=0.01)
        assert parts["tp"][part] == pytest.approx(parts["ddp"][part] / 8, rel=0.01)
        assert parts["fsdp_tp"][part] == pytest.approx(parts["ddp"][part] / 8, rel=0.01)
    assert job_of(base, eight["fsdp_tp"]).devices == 4 and job_of(base, ddp(1)).strategy == "single"
    hybrid = memory_of(base, Layout("hsdp", 8, 8, 1, 1, 1)).total
    assert hybrid == memory_of(base, eight["fsdp"]).total


def test_what_is_proposed_fits_and_is_the_quickest():
    base = job(replace(PRESETS["llama-7b"], block_size=2048), 2048)
    machine = cluster()
    found = propose(base, machine, 512)
    assert found[0].fits and found[0].layout.strategy != "ddp"
    misfit = next(one for one in found if one.layout.strategy == "ddp")
    assert not misfit.fits and "of 80 GB (" in misfit.problem and "optimizer" in misfit.problem
    for one in found:
        assert one.tokens == 512 * 2048
        assert one.tokens_per_second == pytest.approx(one.tokens / one.step.total)
        assert one.mfu <= 0.4
        if one.fits:
            assert one.memory.total <= 80e9 and one.tokens_per_second <= 1.03 * found[0].tokens_per_second
    assert [one.fits for one in found] == sorted((one.fits for one in found), reverse=True)
    # A small network needs nothing but copies.
    assert propose(job(), machine, 512)[0].layout.strategy == "ddp"
    # Less memory: smaller micro-batches, or recomputation, or what is sharded.
    tight = propose(base, machine, 512, budget=50e9)
    assert tight[0].fits and tight[0].tokens_per_second < found[0].tokens_per_second
    assert not any(one.fits for one in propose(base, machine, 512, budget=5e9))


def test_given_cuts_are_kept():
    (one,) = [
        p for p in propose(job(), cluster(), 128, micro_batch=4, checkpoint_every=2) if p.layout.strategy == "ddp"
    ]
    assert (one.layout.micro_batch, one.layout.accumulate, one.layout.checkpoint_every) == (4, 4, 2)
    with pytest.raises(
        ValueError, match="micro_batch=5 does not divide the 16 windows of each device: use one of 1, 2,"
    ):
        propose(job(), cluster(), 128, micro_batch=5, tensor=1)


def test_global_batches():
    assert global_windows(2**21, 2048, 8) == 1024
    assert global_windows(4e6, 2048, 8) == 1952  # 0.06% less
    with pytest.raises(ValueError, match="does not divide into windows of 1,024 tokens over 8 devices: use 16,384 or"):
        global_windows(20000, 1024, 8)
    with pytest.raises(
        ValueError, match="less than one window of 1,024 tokens for each of 8 devices: use at least 8,192"
    ):
        global_windows(4096, 1024, 8)


def test_muon_shares_its_products_out_and_gathers_for_them():
    layout, muon = Layout("fsdp", 1, 8, 1, 4, 1), job(optimizer=MuonAdamW())
    whole, shared = predict(muon, ddp(8, 4), cluster()), predict(muon, layout, cluster())
    assert whole.optimizer == pytest.approx(8 * shared.optimizer, rel=0.01)
    assert shared.optimizer > 2 * predict(job(), layout, cluster()).optimizer
    assert shared.communication > predict(job(), layout, cluster()).communication


@pytest.mark.parametrize(
    ("gpus", "interconnect", "more", "message"),
    [
        ("12xA100", None, {}, "12 devices do not fill nodes of 8"),
        ("8xA100", "ethernet-25g", {}, "joins nodes, and 8 devices are one node of 8"),
        ("8xL4", "nvlink", {}, "l4 has none, use pcie4"),
        ("8xtpu-v4", None, {}, "no strategy here runs on tpu-v4"),
        ("8xA100", "nvlnk", {}, "did you mean nvlink"),
        ("16xA100", None, {"cards": 0}, "cards=0 must be at least 1"),
        ("8xA100", None, {"per_node": 0}, "per_node=0 must be at least 1"),
    ],
)
def test_machines_that_cannot_be(gpus, interconnect, more, message):
    with pytest.raises(ValueError, match=message):
        make_cluster(parse_machine(gpus), interconnect, **more)


def test_links_of_machines():
    assert cluster("8xH100").within.name == "nvlink4" and cluster("16xH100").between.name == "infiniband-400g"
    assert cluster("8xA100", "pcie").within.name == "pcie4"
    assert cluster("8xH100", "pcie").within.name == "pcie5"
    other = cluster("16xA100", "pcie+ethernet-25g")
    assert (other.within.name, other.between.name, other.cards, other.nodes) == ("pcie4", "ethernet-25g", 1, 2)
    assert cluster("2xA100", "ethernet-25g", per_node=1).nodes == 2
