import pytest
import torch

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.nn.quantized_linear import (
    QuantizedLinear,
    dequantize,
    pack_nibbles,
    plain_quantized_linear,
    quantizable,
    quantized_layers,
    unpack_nibbles,
)

N, K = 24, 48
LAYOUTS = [(8, 48, None), (8, 16, None), (4, 48, None), (4, 8, None), (8, 48, 8)]


def random_layer(bits, group_size, act_bits, bias=True):
    generator = torch.Generator().manual_seed(0)
    low, high = (-8, 8) if bits == 4 else (-128, 128)
    values = torch.randint(low, high, (N, K), generator=generator).to(torch.int8)
    scale = torch.rand(N, K // group_size, generator=generator) + 0.1
    return QuantizedLinear.from_values(values, scale, torch.arange(N) / N if bias else None, bits, act_bits), values


def test_nibbles_keep_every_value_and_their_order():
    values = torch.arange(-8, 8, dtype=torch.int8).repeat(3).view(2, 24)
    packed = pack_nibbles(values)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 12)
    assert int(packed[0, 0]) == (int(values[0, 1]) + 8) * 16 + int(values[0, 0]) + 8
    assert torch.equal(unpack_nibbles(packed), values)


def test_dequantized_numbers_are_values_times_the_scale_of_their_group():
    values = torch.tensor([[1, -2, 3, 4]], dtype=torch.int8)
    scale = torch.tensor([[0.5, 10.0]])
    assert dequantize(values, scale).tolist() == [[0.5, -1.0, 30.0, 40.0]]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("bits", "group_size", "act_bits"), LAYOUTS)
def test_the_fast_path_equals_its_readable_twin(bits, group_size, act_bits, bias):
    layer, values = random_layer(bits, group_size, act_bits, bias)
    assert torch.equal(layer.values(), values)
    x = torch.randn(2, 5, K, generator=torch.Generator().manual_seed(1))
    x[0, 0] = 0
    expected = plain_quantized_linear(layer, x)
    y = layer(x)
    assert y.shape == (2, 5, N)
    assert (y - expected).norm() < 2e-6 * expected.norm()
    half = layer(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half - expected).norm() < 2e-2 * expected.norm()


def test_inputs_of_8_bits_are_rounded_a_row_at_a_time():
    layer, _ = random_layer(8, K, 8, bias=False)
    x = torch.randn(3, K, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1e-3], [1.0], [1e3]])
    exact = x @ layer.dequantized().T
    errors = (layer(x) - exact).norm(dim=1) / exact.norm(dim=1)
    assert (errors < 0.02).all()
    assert (errors > 0).all()


@pytest.mark.parametrize("act_bits", [None, 8])
def test_scales_stay_float32_whatever_the_network_becomes(act_bits):
    layer, _ = random_layer(8, K, act_bits)
    scale = layer.scale.clone()
    layer.bfloat16()
    assert layer.scale.dtype == torch.float32
    assert torch.equal(layer.scale, scale)
    assert layer.weight.dtype == torch.int8
    assert layer.bias.dtype == torch.bfloat16
    assert layer.to("meta").scale.is_meta


def test_state_dict_is_the_layout_that_is_documented():
    layer, _ = random_layer(4, 8, None)
    state = layer.state_dict()
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()} == {
        "weight": (torch.uint8, (N, K // 2)),
        "scale": (torch.float32, (N, K // 8)),
        "bias": (torch.float32, (N,)),
    }
    other = QuantizedLinear(K, N, 4, 8, bias=True)
    other.load_state_dict(state)
    assert torch.equal(other.dequantized(), layer.dequantized())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 3}, "bits=3: 8 or 4"),
        ({"group_size": 7}, "group_size=7 and bits=8 do not divide 48"),
        ({"bits": 4, "act_bits": 8}, "act_bits=8 with bits=4"),
        ({"group_size": 8, "act_bits": 8}, "group_size=8"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        QuantizedLinear(K, N, **settings)


def test_which_layers_of_a_network_can_be_quantized():
    config = GPTConfig(vocab_size=50, block_size=8, n_layer=2, n_head=2, n_embd=16, bias=False)
    one = ["attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down"]
    names = [name for name, _ in quantizable(GPT(config))]
    assert names == [f"blocks.{layer}.{name}" for layer in (0, 1) for name in one]
    assert [name for name, _ in quantizable(GPT(config), head=True)] == [*names, "head"]
    moe = MoEConfig(experts=2, top_k=1, shared=1, every=2, renormalize=False)
    mixture = GPT(GPTConfig(vocab_size=50, block_size=8, n_layer=2, n_head=2, n_embd=16, bias=False, moe=moe))
    names = [name for name, _ in quantizable(mixture) if name.startswith("blocks.1")]
    shared = ["feed_forward.shared.up", "feed_forward.shared.down"]
    assert names == [f"blocks.1.{name}" for name in [*one[:2], *shared]]


def test_the_loss_of_a_network_with_a_quantized_head():
    config = GPTConfig(vocab_size=50, block_size=8, n_layer=1, n_head=2, n_embd=16, tie_embeddings=False)
    net = GPT(config).eval()
    values = torch.randint(-127, 128, (50, 16), dtype=torch.int8)
    net.head = QuantizedLinear.from_values(values, torch.full((50, 1), 1e-2), None, 8)
    assert list(quantized_layers(net)) == ["head"]
    ids, targets = torch.randint(50, (2, 8)), torch.randint(50, (2, 8))
    with torch.no_grad():
        total, count = net.loss(ids, targets)
        expected = torch.nn.functional.cross_entropy(net(ids).flatten(0, 1), targets.flatten())
    assert torch.allclose(total / count, expected)
