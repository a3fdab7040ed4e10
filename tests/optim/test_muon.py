import copy
import io

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lightning_gpt.optim import Muon, MuonAdamW
from lightning_gpt.optim.muon import update_scale

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def matrices(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = [(32, 32), (96, 32), (32, 96), (32, 32)]
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]


def fill_gradients(*twins, seed):
    """The same random gradient for each parameter of every list."""
    generator = torch.Generator().manual_seed(seed)
    for same in zip(*twins):
        grad = torch.randn(same[0].shape, generator=generator)
        for parameter in same:
            parameter.grad = grad.to(parameter)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("scale", "adjust"), [("spectral", "original"), ("rms", "match_rms_adamw")])
def test_equals_torch_muon(device, nesterov, scale, adjust):
    ours, theirs, start = matrices(device), matrices(device), matrices(device)
    shared = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    muon = Muon(ours, scale=scale, precision="bf16", **shared)
    peer = torch.optim.Muon(theirs, adjust_lr_fn=adjust, **shared)
    for step in range(5):
        fill_gradients(ours, theirs, seed=step)
        muon.step()
        peer.step()
    for our, their, initial in zip(ours, theirs, start):
        moved = (their - initial).norm()
        assert (our - their).norm() < 0.01 * moved  # both round to bf16, not at the same places


@pytest.mark.parametrize("device", DEVICES)
def test_adamw_groups_equal_torch_adamw(device):
    ours, theirs = matrices(device), matrices(device)
    shared = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    muon = Muon([{"params": ours, "algorithm": "adamw"}], **shared)
    peer = torch.optim.AdamW(theirs, fused=True, **shared)
    for step in range(5):
        fill_gradients(ours, theirs, seed=step)
        muon.step()
        peer.step()
    for our, their in zip(ours, theirs):
        assert torch.equal(our, their)


@pytest.mark.parametrize("device", DEVICES)
def test_update_is_orthogonal_and_scaled(device):
    parameters = matrices(device)
    before = [p.detach().clone() for p in parameters]
    fill_gradients(parameters, seed=0)
    Muon(parameters, lr=0.1, precision="fp32").step()
    for parameter, start in zip(parameters, before):
        rows, cols = parameter.shape
        singular = torch.linalg.svdvals((start - parameter).float()) / (0.1 * max(1, rows / cols) ** 0.5)
        assert singular.max() < 1.3
        assert singular.median() > 0.6
        if rows != cols:  # a random square matrix has singular values too small for five steps
            assert singular.min() > 0.6


def test_rms_scale_gives_adamws_root_mean_square():
    for shape in [(64, 64), (256, 64), (64, 256)]:
        orthogonal = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        update = orthogonal.U @ orthogonal.Vh * update_scale(torch.Size(shape), "rms")
        assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=1e-4)


def test_a_stack_of_experts_is_so_many_matrices():
    generator = torch.Generator().manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 8, 16, generator=generator))
    separate = [nn.Parameter(expert.clone()) for expert in stack.detach()]
    stack.grad = torch.randn(3, 8, 16, generator=generator)
    for parameter, grad in zip(separate, stack.grad):
        parameter.grad = grad.clone()
    Muon([stack], precision="fp32").step()
    Muon(separate, precision="fp32").step()
    torch.testing.assert_close(stack, torch.stack(separate))


def test_large_stacks_are_cut_without_a_difference(monkeypatch):
    whole, cut = matrices(), matrices()
    fill_gradients(whole, cut, seed=0)
    Muon(whole, precision="fp32").step()
    monkeypatch.setattr("lightning_gpt.optim.muon.MAX_STACKED_ELEMENTS", 1)
    Muon(cut, precision="fp32").step()
    torch.testing.assert_close(cut, whole)


def sharded_steps(rank, folder):
    """One of two processes: three steps on rows cut over both (17 rows: unevenly), saved whole by the first."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    parameters, grads = two_matrices()
    parameters = [nn.Parameter(distribute_tensor(p.data, mesh, [Shard(0)])) for p in parameters]
    optimizer = Muon(parameters, lr=0.1, weight_decay=0.1, precision="fp32")
    for grad in grads:
        for parameter in parameters:
            parameter.grad = distribute_tensor(grad, mesh, [Shard(0)])
        optimizer.step()
    whole = [p.full_tensor().detach() for p in parameters]
    if rank == 0:
        torch.save(whole, f"{folder}/whole.pt")
    torch.distributed.destroy_process_group()


def two_matrices():
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(17, 8, generator=generator)) for _ in range(2)]
    return parameters, torch.randn(3, 17, 8, generator=generator)


def test_two_processes_with_sharded_parameters_equal_one(tmp_path):
    torch.multiprocessing.start_processes(sharded_steps, (str(tmp_path),), nprocs=2, start_method="fork")
    parameters, grads = two_matrices()
    optimizer = Muon(parameters, lr=0.1, weight_decay=0.1, precision="fp32")
    for grad in grads:
        for parameter in parameters:
            parameter.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(torch.load(tmp_path / "whole.pt"), [p.detach() for p in parameters])


@pytest.mark.parametrize("tied", [True, False])
def test_resumes_bit_for_bit(tiny_gpt, train, tied):
    spec = MuonAdamW(weight_decay=0.1, adam_weight_decay=0.1)
    network = tiny_gpt(tied=tied, experts=2)
    optimizer = spec.build(network)
    train(network, optimizer, 3)
    file = io.BytesIO()
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = train(network, optimizer, 3)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = tiny_gpt(tied=tied, experts=2)
    resumed.load_state_dict(saved["network"])
    again = spec.build(resumed)
    again.load_state_dict(saved["optimizer"])
    assert train(resumed, again, 3) == expected
    for a, b in zip(network.parameters(), resumed.parameters()):
        assert torch.equal(a, b)


def test_skips_parameters_without_gradient_and_calls_the_closure(tiny_gpt):
    network = tiny_gpt()
    optimizer = MuonAdamW().build(network)
    before = copy.deepcopy(network.state_dict())

    def closure():
        loss = network.final_norm.weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 32
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == (name != "final_norm.weight")


def test_gradient_scaler_skips_an_infinite_step():
    parameters = matrices()
    before = [p.detach().clone() for p in parameters]
    optimizer = Muon(parameters)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loss = sum(p.square().sum() for p in parameters)
    scaler.scale(loss).backward()
    parameters[0].grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(p, start) for p, start in zip(parameters, before))
    assert scaler.get_scale() == 4.0


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"params": [nn.Parameter(torch.zeros(3))]}, "algorithm 'muon' got a parameter of shape"),
        ({"params": [nn.Parameter(torch.zeros(3, 3))], "algorithm": "adam"}, "choose 'muon' or 'adamw'"),
        ({"params": [nn.Parameter(torch.zeros(3, 3))], "scale": "max"}, "choose 'spectral' or 'rms'"),
    ],
)
def test_refuses_what_it_cannot_serve(group, message):
    with pytest.raises(ValueError, match=message):
        Muon([group])
