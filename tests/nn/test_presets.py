import pytest

from lightning_gpt.nn.flops import parameters
from lightning_gpt.nn.presets import PRESETS

PUBLISHED = {
    "gpt2": 124.44e6,
    "gpt2-medium": 354.82e6,
    "gpt2-large": 774.03e6,
    "gpt2-xl": 1557.61e6,
    "llama-125m": 125e6,
    "smollm2-135m": 134.52e6,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_weights(name):
    tolerance = 0.02 if name == "llama-125m" else 0.005
    assert parameters(PRESETS[name]) == pytest.approx(PUBLISHED[name], rel=tolerance)
