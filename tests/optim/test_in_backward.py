"""A step in the backward pass is the ordinary step."""

from copy import deepcopy

import pytest
import torch

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.optim import SGD, AdamW, AdamW8bit, Cosine, InBackward, MuonAdamW
from lightning_gpt.parallel.recompute import recompute

CONFIG = GPTConfig(vocab_size=41, block_size=16, n_layer=2, n_head=2, n_embd=32)
SPECS = [AdamW(lr=1e-2), AdamW(lr=1e-2, fused=False), AdamW8bit(lr=1e-2, min_8bit_size=0), SGD(lr=0.1), MuonAdamW()]


def run(net: GPT, optimizer: torch.optim.Optimizer, steps: int, begin: int = 0) -> torch.optim.lr_scheduler.LRScheduler:
    """Some steps under a schedule, as Lightning makes them: the backward pass in the closure."""
    schedule = Cosine(warmup_steps=2).build(optimizer, 8)
    for _ in range(begin):
        schedule.step()
    for step in range(begin, begin + steps):
        batch = torch.randint(41, (2, 16), generator=torch.Generator().manual_seed(step))

        def closure(ids=batch):
            loss = net.loss(ids, ids.roll(1))[0]
            optimizer.zero_grad()
            loss.backward()
            return loss

        optimizer.step(closure)
        schedule.step()
    return schedule


def same(one: GPT, two: GPT) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    ("spec", "setting"), [*((spec, 0) for spec in SPECS), (SPECS[0], "full"), (SPECS[0], "selective")]
)
def test_the_same_weights_bit_for_bit(spec, setting):
    torch.manual_seed(0)
    ordinary = GPT(CONFIG)
    stepping = deepcopy(ordinary)
    recompute(stepping, setting)
    run(ordinary, spec.build(ordinary), 4)
    run(stepping, InBackward(spec.build(stepping)), 4)
    assert same(ordinary, stepping) and not same(stepping, GPT(CONFIG))


def test_only_one_gradient_is_there_at_a_time_and_none_after():
    torch.manual_seed(0)
    net = GPT(CONFIG)
    optimizer = InBackward(AdamW().build(net))
    most = []
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: most.append(sum(one.grad is not None for one in net.parameters()))
        )
    ids = torch.randint(41, (2, 16))
    net.loss(ids, ids)[0].backward()
    assert len(most) == len(list(net.parameters())) and max(most) == 0  # freed before the later hooks
    assert all(parameter.grad is None for parameter in net.parameters())
    assert optimizer.take_norm() > 0


def test_the_norm_is_that_of_all_gradients():
    torch.manual_seed(0)
    net = GPT(CONFIG)
    other = deepcopy(net)
    optimizer, ids = InBackward(SGD(lr=0.1).build(net)), torch.randint(41, (2, 16))
    for one in (net, other):
        one.loss(ids, ids)[0].backward()
    expected = torch.nn.utils.get_total_norm([parameter.grad for parameter in other.parameters()])
    torch.testing.assert_close(optimizer.take_norm(), expected)
    assert optimizer.take_norm() == 0


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("spec", SPECS[::4], ids=lambda spec: type(spec).__name__)
def test_each_goes_on_from_the_state_of_the_other(spec):
    torch.manual_seed(0)
    whole = GPT(CONFIG)
    start = deepcopy(whole)
    run(whole, spec.build(whole), 6)
    for first, second in ((InBackward, lambda plain: plain), (lambda plain: plain, InBackward)):
        net = deepcopy(start)
        optimizer = first(spec.build(net))
        run(net, optimizer, 3)
        after = GPT(CONFIG)
        after.load_state_dict(net.state_dict())
        state = deepcopy(optimizer.state_dict())
        again = second(spec.build(after))
        again.load_state_dict(state)
        for group in again.param_groups:
            group["lr"] = group["initial_lr"]
        run(after, again, 3, begin=3)
        assert same(after, whole)


def test_gradients_set_by_hand_are_stepped_too():
    net = GPT(CONFIG)
    before = deepcopy(net)
    optimizer = InBackward(AdamW().build(net))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not same(net, before)
    with pytest.raises(ValueError, match="add it before it is wrapped"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
