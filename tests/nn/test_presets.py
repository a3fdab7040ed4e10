import pytest
import torch

from lightning_gpt.nn import GPT
from lightning_gpt.nn.flops import attention_matrix_parameters, body_parameters, parameters
from lightning_gpt.nn.presets import PRESETS

PUBLISHED = {  # of the released weights; for GPT-3, GLaM and active parameters as their papers round them
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-125m": 125e6,
    "gpt3-175b": 175e9,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}
ACTIVE = {"mixtral-8x7b": 12_879_925_248, "glam-64b-64e": 96.6e9, "glam-1.7b-64e": 1.878e9}
TOTAL_ROUNDED = {  # two digits of a paper's table
    "glam-64b-64e": 1.2e12,
    "glam-1.7b-64e": 27e9,
    "gpt3-350m": 350e6,
    "gpt3-760m": 760e6,
    "gpt3-1.3b": 1.3e9,
    "gpt3-2.7b": 2.7e9,
    "gpt3-6.7b": 6.7e9,
    "gpt3-13b": 13e9,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_weights(name):
    assert parameters(PRESETS[name]) == pytest.approx(PUBLISHED[name], rel=0.005)


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters_are_the_published_ones(name):
    assert parameters(PRESETS[name], active=True) == pytest.approx(ACTIVE[name], rel=0.005)


@pytest.mark.parametrize("name", TOTAL_ROUNDED)
def test_totals_that_papers_round(name):
    assert parameters(PRESETS[name]) == pytest.approx(TOTAL_ROUNDED[name], rel=0.05)


def test_two_stacks_of_switch_with_cross_attention_are_the_published_encoder_decoder():
    config = PRESETS["switch-base"]
    cross = config.n_layer * (attention_matrix_parameters(config) + config.n_embd)
    total = 2 * body_parameters(config) + cross + config.vocab_size * config.n_embd
    assert total == pytest.approx(7.4e9, rel=0.005)


@pytest.mark.parametrize("name", PRESETS)
def test_the_count_equals_the_network(name):
    with torch.device("meta"):
        net = GPT(PRESETS[name])
    assert sum(p.numel() for p in net.parameters()) == parameters(PRESETS[name])
