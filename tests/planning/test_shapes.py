import numpy as np
import pytest

from lightning_gpt.nn.flops import body_parameters, parameters
from lightning_gpt.planning.shapes import TOLERANCE, aspect_ratio, find_shape


@pytest.mark.parametrize("style", ["llama", "gpt"])
def test_every_size_has_a_shape_within_tolerance(style):
    for size in np.geomspace(1e6, 1e12, 13):
        config = find_shape(size, style)
        assert abs(parameters(config) / size - 1) <= TOLERANCE, size
        assert config.n_embd % config.n_head == 0
        ratio = config.n_embd / config.n_layer
        expected = aspect_ratio(style, body_parameters(config))
        assert 0.4 < ratio / expected < 2.5, size


def test_sizes_without_embeddings():
    config = find_shape(85e6, "gpt", count="body")
    assert abs(body_parameters(config) / 85e6 - 1) <= TOLERANCE


def test_a_published_size_gets_about_the_published_shape():
    config = find_shape(6.74e9, "llama", vocab=32000)
    assert 28 <= config.n_layer <= 36
    assert 3584 <= config.n_embd <= 4608
    assert not config.tie_embeddings


def test_what_is_asked_for_is_kept():
    config = find_shape(5e7, "llama", vocab=8000, context=512)
    assert (config.vocab_size, config.block_size) == (8000, 512)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((10.0, "llama"), r"params=10: shapes start at 10000 parameters"),
        ((float("nan"), "llama"), "params=nan"),
        ((1e6, "llama", 50000), "no llama shape with a vocabulary of 50,000 lies within 3% of it"),
        ((1e8, "bert"), "style='bert' is unknown: use one of llama, gpt"),
        ((1e8, "gpt", 0), "vocab=0 must be at least 1"),
    ],
)
def test_what_has_no_shape(args, message):
    with pytest.raises(ValueError, match=message):
        find_shape(*args)
