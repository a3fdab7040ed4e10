from types import SimpleNamespace

import pytest

from lightning_gpt.callbacks.communication_share import (
    CommunicationShare,
    measure_share,
    overlap,
    union,
)
from lightning_gpt.callbacks.jsonl_logger import read_metrics


def event(name: str, begin: float, end: float, device: str = "DeviceType.CPU") -> SimpleNamespace:
    """As torch.profiler gives it, in microseconds."""
    span = SimpleNamespace(start=begin, end=end)
    return SimpleNamespace(name=name, time_range=span, device_type=device, is_user_annotation=False)


def test_intervals():
    assert union([(5, 6), (0, 2), (1, 3), (3, 4), (7, 7)]) == [(0, 4), (5, 6)]
    assert overlap([(0, 4), (5, 6)], [(3, 5.5), (10, 11)]) == pytest.approx(1.5)
    assert overlap([], [(0, 1)]) == 0


def test_what_runs_beside_computing_is_hidden():
    events = [
        event("DistributedDataParallel.forward", 0, 40),
        event("aten::mm", 0, 40),
        event("aten::add", 10, 20),  # within another
        event("gloo:all_reduce", 30, 60),  # 10 hidden, 20 exposed
        event("gloo:all_reduce", 50, 70),  # 10 more exposed
        event("aten::mm", 80, 100),
    ]
    share = measure_share(events, 100e-6)
    assert share.collectives == pytest.approx(40e-6)
    assert share.exposed == pytest.approx(30e-6)
    assert share.share == pytest.approx(0.3) and share.hidden == pytest.approx(0.1)
    assert share.by_name == {"gloo:all_reduce": {"count": 2, "seconds": pytest.approx(50e-6)}}


def test_on_a_gpu_only_kernels_count():
    gpu = "DeviceType.CUDA"
    events = [
        event("aten::mm", 0, 1000),
        event("ampere_gemm", 0, 60, gpu),
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096>)", 40, 100, gpu),
    ]
    share = measure_share(events, 200e-6)
    assert share.share == pytest.approx(0.2) and share.hidden == pytest.approx(0.1)
    assert list(share.by_name) == ["ncclDevKernel_AllReduce_Sum_f32_RING_LL"]


def test_one_process_sends_nothing(lightning_gpt):
    name = "lightning_gpt.callbacks.CommunicationShare"
    run = lightning_gpt("fit", f"--trainer.callbacks+={name}", "--trainer.callbacks.after", 1)
    (row,) = [row for row in read_metrics(run / "metrics.jsonl") if "speed/communication_share" in row]
    assert row["speed/communication_share"] == row["speed/communication_hidden"] == 0 and row["step"] == 4
    assert (run / "communication_share.json").exists()


def test_bad_numbers():
    with pytest.raises(ValueError, match=r"CommunicationShare.steps=0 must be at least 1"):
        CommunicationShare(steps=0)
