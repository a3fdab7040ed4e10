import pytest
import torch
from torch import nn

from lightning_gpt.callbacks.non_finite import locate_non_finite
from lightning_gpt.nn import GPT, GPTConfig


@pytest.fixture
def net():
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=3, n_head=2, n_embd=16, feed_forward="relu"))


def place_in(net):
    ids = torch.arange(16).view(2, 8) % 11
    return locate_non_finite(net, lambda: net.loss(ids, ids)[0])


class Infinite(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 0.0


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def test_nothing_is_found_where_all_is_finite(net):
    assert place_in(net) is None
    assert not any(module._forward_hooks or module._backward_hooks for module in net.modules())


def test_the_first_output_in_the_order_of_the_forward_pass(net):
    net.blocks[1].attention.out.__class__ = Infinite
    net.blocks[2].feed_forward.up.__class__ = Infinite
    assert place_in(net) == "the output of blocks.1.attention.out (Infinite)"


def test_an_input_that_breaks_between_two_modules(net):
    net.blocks[1].feed_forward.activation = lambda x: x * float("inf")
    assert place_in(net) == "the input of blocks.1.feed_forward.down (Linear)"


def test_a_weight_that_is_broken_already(net):
    with torch.no_grad():
        net.blocks[2].attention.out.weight[0, 0] = float("nan")
    assert place_in(net) == "the weights blocks.2.attention.out.weight"
    with torch.no_grad():
        net.final_norm.weight.fill_(float("inf"))
    assert place_in(net) == "the weights blocks.2.attention.out.weight (and 1 more)"


@pytest.mark.filterwarnings("error")
def test_the_first_gradient_in_the_order_of_the_backward_pass(net):
    net.blocks[1].feed_forward.activation = BadBackward.apply
    assert place_in(net) == "the gradient at the output of blocks.1.feed_forward.up (Linear)"


def test_a_gradient_inside_a_module(net):
    class Bad(nn.Linear):
        def forward(self, x):
            return super().forward(BadBackward.apply(x))

    net.blocks[0].attention.out.__class__ = Bad
    assert place_in(net) == "the gradient inside blocks.0.attention.out (Bad)"


def test_a_loss_of_finite_states(net):
    assert locate_non_finite(net, lambda: net(torch.zeros(1, 8, dtype=torch.long)).sum() * float("nan")) == (
        "the loss, computed from finite states and weights"
    )


def test_a_gradient_of_another_micro_batch(net):
    net.head.weight.grad = torch.full_like(net.head.weight, float("inf"))
    assert place_in(net) == "the gradient of token_embedding.weight, but not of this batch alone"
