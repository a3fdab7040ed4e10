import pytest
import torch

from lightning_gpt.nn.positions import RotaryTable, SinusoidalTable, rotate
from lightning_gpt.nn.rope_scaling import RopeScaling, rotary_frequencies

transformers = pytest.importorskip("transformers")

SCALINGS = {
    "linear": (RopeScaling("linear", 4.0), {"rope_type": "linear", "factor": 4.0}),
    "yarn": (
        RopeScaling("yarn", 4.0, 256),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    ),
    "yarn, other limits": (
        RopeScaling("yarn", 16.0, 512, beta_fast=20.0, beta_slow=2.0),
        {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
        },
    ),
    "llama3": (
        RopeScaling("llama3", 8.0, 8192),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("theta", [10000.0, 5e5])
def test_frequencies_equal_transformers(name, theta):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    ours, theirs = SCALINGS[name]
    config = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=1024,
        rope_parameters={"rope_theta": theta} | theirs,
    )
    frequency, growth = rotary_frequencies(64, theta, ours)
    expected, expected_growth = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, "cpu")
    torch.testing.assert_close(frequency.float(), expected.float())
    assert growth == pytest.approx(expected_growth)


def test_ntk_stretches_the_longest_wavelength_by_the_factor_and_leaves_the_shortest():
    plain, _ = rotary_frequencies(64, 10000.0, None)
    stretched, growth = rotary_frequencies(64, 10000.0, RopeScaling("ntk", 4.0))
    assert growth == 1
    assert stretched[0] == plain[0]
    assert (plain[-1] / stretched[-1]).item() == pytest.approx(4.0)


def test_rotary_scores_depend_on_distance_alone():
    table = RotaryTable(8, 32, 100.0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    turned = [
        (rotate(q, *table(slice(i, i + 1), q.dtype)) * rotate(k, *table(slice(j, j + 1), q.dtype))).sum()
        for i, j in ((5, 2), (20, 17), (31, 28))
    ]
    torch.testing.assert_close(turned[0], turned[1])
    torch.testing.assert_close(turned[0], turned[2])


def test_each_pair_is_turned_by_its_angle():
    x = torch.randn(2, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    y = rotate(x, *RotaryTable(8, 7, 100.0)(slice(0, 7), x.dtype))
    angle = torch.arange(7)[:, None] * rotary_frequencies(8, 100.0, None)[0].float()
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(y, torch.cat((expected.real, expected.imag), dim=-1))


def test_partial_rotary_leaves_the_rest():
    x = torch.randn(2, 3, 7, 10, generator=torch.Generator().manual_seed(0))
    cos, sin = RotaryTable(4, 7, 100.0)(slice(0, 7), x.dtype)
    y = rotate(x, cos, sin)
    assert torch.equal(y[..., 4:], x[..., 4:])
    torch.testing.assert_close(y[..., :4], rotate(x[..., :4], cos, sin))


def test_sinusoidal_table_by_hand():
    table = SinusoidalTable(6, 9).weight
    assert table.shape == (9, 6)
    angle = 5 / 10000 ** (2 / 6)
    assert table[5, 2].item() == pytest.approx(torch.tensor(angle).sin().item(), abs=1e-6)
    assert table[5, 3].item() == pytest.approx(torch.tensor(angle).cos().item(), abs=1e-6)
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1]
