import pytest
import torch

from lightning_gpt.callbacks import training_probes
from lightning_gpt.callbacks.training_probes import FLAT_BELOW, SAMPLE, UnitProbe, UpdateProbe, WaitClock, sample
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.feedforward import ACTIVATIONS

TINY = {"vocab_size": 11, "block_size": 8, "n_layer": 3, "n_head": 2, "n_embd": 16}


def network(**settings):
    torch.manual_seed(0)
    return GPT(GPTConfig(**TINY, **settings))


def ids():
    return torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(1))


def of_blocks(net):
    return {name: p for name, p in net.named_parameters() if p.ndim > 1 and name.startswith("blocks")}


def test_the_ratio_is_that_of_norms_over_all_matrices():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    probe = UpdateProbe(net)
    net.loss(ids(), ids())[0].backward()
    before = {name: p.detach().clone() for name, p in of_blocks(net).items()}
    probe.before_step()
    optimizer.step()
    found = probe.after_step()
    moved = torch.cat([(p - before[name]).flatten() for name, p in of_blocks(net).items()])
    weights = torch.cat([p.flatten() for p in before.values()])
    assert found["update_ratio"] == pytest.approx(float(moved.norm() / weights.norm()), rel=1e-5)
    first, last = (
        torch.cat([p.grad.flatten() for name, p in of_blocks(net).items() if name.startswith(f"blocks.{layer}.")])
        for layer in (0, 2)
    )
    assert found["gradient_depth"] == pytest.approx(float(first.norm() / last.norm()), rel=1e-5)
    assert probe.after_step() == {}


def test_large_matrices_are_sampled_evenly():
    large = torch.arange(10 * SAMPLE).reshape(SAMPLE, 10)
    assert sample(large).tolist() == list(range(0, 10 * SAMPLE, 10))
    assert sample(large).data_ptr() == large.data_ptr()


@pytest.mark.parametrize("kind", ["relu", "gelu", "swiglu"])
def test_dead_units_are_counted_over_the_whole_batch(kind):
    net = network(feed_forward=kind, ffn_hidden=20, bias=True)
    layer = net.blocks[1].feed_forward
    with torch.no_grad():
        (layer.gate_up if kind == "swiglu" else layer.up).bias[:5] = -100.0
    probe = UnitProbe(net, kind)
    probe.begin()
    net(ids())
    net(ids())
    found = probe.end()
    # Of the small random units of the start some that ReLU keeps off are alive in no token of so small a batch.
    if kind != "relu":
        assert found["dead_units"] == pytest.approx(5 / 60)
        assert found["dead_units_worst"] == 0.25
    assert found["dead_units_worst"] >= 0.25
    assert found["dead_units_layer"] == 1
    net(ids())
    assert probe.end() == {}, "nothing is looked at after the end"


def test_below_the_threshold_an_activation_is_flat():
    for kind, threshold in FLAT_BELOW.items():
        x = torch.linspace(threshold - 20, threshold - 1e-3, 100, requires_grad=True)
        ACTIVATIONS[kind](x).sum().backward()
        assert x.grad.abs().max() <= 0.0135


def test_waiting_is_what_passes_between_batches(monkeypatch):
    now = iter([10.0, 13.0, 14.0, 17.0, 20.0, 25.0])
    monkeypatch.setattr(training_probes.time, "perf_counter", lambda: next(now))
    clock, cpu = WaitClock(), torch.device("cpu")
    assert clock.share() is None
    clock.batch_came(cpu)  # at 10
    clock.batch_ended()  # 3 s of work
    clock.batch_came(cpu)  # 1 s of waiting
    clock.batch_ended()  # 3 s of work
    clock.interrupted()
    clock.batch_came(cpu)  # 3 s that are neither
    clock.batch_ended()  # 5 s of work
    assert clock.share() == pytest.approx(1 / 12)
    assert clock.share() is None
