"""Timed generation: the tokens are the right ones, bytes and operations are counted exactly."""

import mmap

import pytest
import torch

from lightning_gpt.inference.bench import bench
from lightning_gpt.inference.generation import generate
from lightning_gpt.inference.measure import random_prompts, time_generation
from lightning_gpt.inference.peak_memory import PeakMemory
from lightning_gpt.inference.runner import TorchRunner
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.inference.step_work import decode_bytes, decode_flops, prompt_flops, weight_bytes
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.machine_limits import gemm_flops, read_bandwidth
from lightning_gpt.nn.presets import PRESETS

SHAPE = {"vocab_size": 61, "block_size": 64, "n_layer": 2, "n_head": 4, "n_embd": 32}
GREEDY = SamplingConfig(temperature=0)


def network(**settings) -> GPT:
    """Small, with weights that make lively texts."""
    torch.manual_seed(0)
    net = GPT(GPTConfig(**{**SHAPE, **settings})).eval()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return net


@pytest.mark.parametrize("tokens_a_step", [1, 20, 1000])
def test_tokens_are_those_of_generation(tokens_a_step):
    net = network(n_kv_head=2, position="rotary")
    prompts = random_prompts(61, 5, 9)
    timing = time_generation(TorchRunner(net), prompts, 12, tokens_a_step=tokens_a_step)
    assert timing.tokens == generate(net, prompts, 12, GREEDY)
    assert (len(timing.first), len(timing.steps), len(timing.whole)) == (5, 11, 1)
    assert timing.whole[0] == pytest.approx(timing.first[-1] + sum(timing.steps))
    assert timing.first == sorted(timing.first) and len(set(timing.first)) == {1: 5, 20: 3, 1000: 1}[tokens_a_step]
    assert timing.cache_bytes == 5 * 32 * 2 * 2 * 2 * 8 * 4  # rows, positions, layers, two, heads, width, bytes


def test_bytes_of_a_step():
    net = network(n_kv_head=2)
    body = sum(p.nbytes for p in net.blocks.parameters()) + sum(p.nbytes for p in net.final_norm.parameters())
    assert weight_bytes(net) == body + 61 * 32 * 4 + (net.token_embedding.weight.shape[0] - 61) * 32 * 4
    untied = network(n_kv_head=2, tie_embeddings=False)
    assert weight_bytes(untied) == weight_bytes(net)
    assert decode_bytes(net, 3, 10, "int8") - weight_bytes(net) == 3 * 10 * 2 * 2 * 2 * (8 + 4)
    assert weight_bytes(net.bfloat16()) * 2 == weight_bytes(untied)


def test_experts_that_nobody_chose_are_not_read():
    net = GPT(PRESETS["tiny-mixtral"])
    moe = net.config.moe
    experts = sum(p.nbytes for name, p in net.named_parameters() if ".experts." in name)
    rest = weight_bytes(net, 10**9) - experts
    assert weight_bytes(net, 1) == rest + experts * moe.top_k // moe.experts
    assert weight_bytes(net, 1) < weight_bytes(net, 2) < weight_bytes(net, 50) <= rest + experts


def test_operations():
    config = GPTConfig(**SHAPE)
    matrices = 2 * (4 * 32 * 32 + 2 * 4 * 32 * 32)
    head = 32 * config.padded_vocab_size
    assert decode_flops(config, 3, 10) == 3 * 2 * (matrices + head + 2 * 2 * 32 * 10)
    assert prompt_flops(config, 3, 10) == 3 * 2 * (10 * matrices + head + 2 * 2 * 32 * 55)


def test_limits_are_of_a_machine():
    assert 1e8 < read_bandwidth(repeats=1) < 1e13
    assert 1e8 < gemm_flops(torch.float32, size=128, repeats=2) < 1e15
    assert gemm_flops(torch.int8, size=128, repeats=2) > 1e8


def test_peak_memory_is_that_of_the_work():
    with PeakMemory(torch.device("cpu")) as before:
        pass
    with PeakMemory(torch.device("cpu")) as peak, mmap.mmap(-1, 2**28) as fresh:  # not from what tests have freed
        for page in range(0, 2**28, mmap.PAGESIZE):
            fresh[page] = 1
    assert peak.bytes - before.bytes > 2**27


def test_bench_relates_times_to_limits():
    net = network()
    found = bench(net, TorchRunner(net), [1, 2], [3, 5], 4, "int4", repeats=2, say=False)
    assert [(one["batch"], one["prompt"]) for one in found["speeds"]] == [(1, 3), (1, 5), (2, 3), (2, 5)]
    assert (found["cache"], found["weight_type"], found["limits"]["gemm_type"]) == ("int4", "float32", "float32")
    for one in found["speeds"]:
        limit = found["limits"]["read_bytes_per_second"]
        assert one["bandwidth_share"] == pytest.approx(one["step_bytes"] / one["inter_token_seconds"] / limit)
        assert (
            one["step_bytes"] == sum(decode_bytes(net, one["batch"], one["prompt"] + n, "int4") for n in (1, 2, 3)) / 3
        )
        assert 0 < one["inter_token_seconds"] <= one["inter_token_seconds_p95"]
        assert one["decode_tokens_per_second"] == pytest.approx(one["batch"] / one["inter_token_seconds"])


@pytest.mark.parametrize(
    "batches, prompts, new, message",
    [
        ([1], [60], 8, "prompt=60 and new=8 need 67 positions, the network has block_size=64"),
        ([0], [4], 8, "batch=0 must be numbers of at least 1"),
        ([1], [4], 1, "new=1 must be at least 2"),
    ],
)
def test_bad_input(batches, prompts, new, message):
    net = network()
    with pytest.raises(ValueError, match=message):
        bench(net, TorchRunner(net), batches, prompts, new)
