"""What experiments measure, on networks small enough to know the answers."""

import math

import pytest
import torch

from lightning_gpt.experiments.measures.batching import Trace, drive, measure_batching, random_requests, summary
from lightning_gpt.experiments.measures.cache_types import ChannelKeysCache, attention_error, measure_cache
from lightning_gpt.experiments.measures.cache_use import measure_cache_use
from lightning_gpt.experiments.measures.draft_length import measure_drafts
from lightning_gpt.experiments.measures.overload import measure_overload
from lightning_gpt.experiments.measures.perplexity import held_out_windows, losses, perplexity
from lightning_gpt.hub import open_model
from lightning_gpt.inference.engine import Engine
from lightning_gpt.inference.engine_config import EngineConfig
from lightning_gpt.inference.generation import generate
from lightning_gpt.inference.runner import TorchRunner
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.caches import slot_cache

SHAPE = {"vocab_size": 61, "block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 32}


@pytest.fixture
def text(tmp_path):
    """A file of 1,000 bytes."""
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(97 + n * n % 26) for n in range(1000)))
    return path


def test_perplexity_is_that_of_single_tokens(tiny_model, text):
    net, tokenizer = open_model(tiny_model)
    windows = held_out_windows(str(text), tokenizer, 96, 32, seed=1)
    assert windows.shape == (3, 33)
    whole = tokenizer.encode(text.read_text())
    places = [next(i for i in range(0, 768, 32) if whole[i : i + 33] == row) for row in windows.tolist()]
    assert len(set(places)) == 3
    assert not torch.equal(windows, held_out_windows(str(text), tokenizer, 96, 32, seed=2))
    with torch.inference_mode():
        each = [torch.log_softmax(net(row[None, : n + 1])[0, -1], -1)[row[n + 1]] for row in windows for n in range(32)]
    total = -float(sum(each))
    assert perplexity(net, windows) == pytest.approx(math.exp(total / 96), rel=1e-4)
    through = losses(net, windows, lambda rows: slot_cache(net.config, rows, None, torch.float32))
    torch.testing.assert_close(through, losses(net, windows))


def test_texts_that_are_too_short(tiny_model, text):
    _, tokenizer = open_model(tiny_model)
    with pytest.raises(ValueError, match="has 1,000 tokens: tokens=4,096 in windows of context=32 cannot be drawn"):
        held_out_windows(str(text), tokenizer, 4096, 32, seed=1)


def test_fewer_bits_err_more(tiny_model, text):
    given = {"text": str(text), "tokens": 128, "context": 64, "prompt": 8, "new": 4, "seed": 1}
    kinds = ("float32", "bfloat16", "int8", "int4", "int4-keys-by-channel")
    found = {kind: measure_cache(str(tiny_model), kind, **given) for kind in kinds}
    errors = [found[kind]["attention/relative_error"] for kind in ("float32", "int8", "int4")]
    assert errors[0] < 1e-6 < errors[1] < errors[2]
    assert found["float32"]["greedy/agreement"] == 1.0 >= found["int8"]["greedy/agreement"]
    assert [found[kind]["cache/bytes_per_token"] for kind in kinds] == [8 * n for n in (128, 64, 36, 20, 20)]
    assert all(one["decode/tokens_per_second"] > 0 for one in found.values())


def test_keys_by_channel_lose_less_where_channels_differ(tiny_model, text):
    net, tokenizer = open_model(tiny_model)
    windows = held_out_windows(str(text), tokenizer, 64, 64, seed=1)[:, :-1]
    with torch.no_grad():
        for block in net.blocks:  # one channel of each key is large, as trained networks have them
            block.attention.qkv.weight[64 : 64 + 64 : 16] *= 30
    by_token = attention_error(net, windows, lambda rows: slot_cache(net.config, rows, None, "int4"))
    assert attention_error(net, windows, lambda rows: ChannelKeysCache(net, rows)) < by_token


def test_rows_of_cache_use():
    for cached in (False, True):
        rows = list(measure_cache_use(cached, SHAPE, [2, 4, 8, 16], seed=1))
        assert [row["step"] for row in rows] == [2, 4, 8, 16]
        seconds = [row["time/seconds"] for row in rows]
        assert seconds == sorted(seconds) and len({row["time/exponent"] for row in rows}) == 1
    with pytest.raises(ValueError, match="must rise, from at least 2 to at most block_size=64"):
        list(measure_cache_use(True, SHAPE, [2, 65], seed=1))


@pytest.mark.parametrize("arrivals", [None, [0.0, 0.001, 0.01, 0.01, 0.02, 0.05]])
def test_every_request_under_load_gets_its_own_text(arrivals):
    torch.manual_seed(0)
    net = GPT(GPTConfig(**SHAPE)).eval()
    requests = random_requests(net.config, 6, [2, 9], [3, 7], seed=1)
    assert requests == random_requests(net.config, 6, [2, 9], [3, 7], seed=1)
    engine = Engine(TorchRunner(net), config=EngineConfig(max_running=2))
    traces = drive(engine, requests, arrivals, clients=3)
    expected = [generate(net, [one.prompt], one.max_new_tokens, SamplingConfig(temperature=0))[0] for one in requests]
    assert [len(trace.tokens) for trace in traces] == list(map(len, expected))
    assert all(trace.asked <= trace.tokens[0] and trace.tokens == sorted(trace.tokens) for trace in traces)
    if arrivals is not None:
        assert [trace.asked for trace in traces] == arrivals


def test_summary_of_traces():
    traces = [Trace(0.0, [1.0, 1.5, 2.0]), Trace(1.0, [1.25, 1.75])]
    assert summary(traces) == {
        "throughput/tokens_per_second": 2.5,
        "latency/first_token_p50_ms": 625.0,
        "latency/first_token_p99_ms": 1000.0,
        "latency/between_tokens_p50_ms": 500.0,
        "latency/answer_p50_ms": 1375.0,
        "latency/answer_p99_ms": 2000.0,
    }


def test_an_unknown_loop():
    with pytest.raises(ValueError, match="loop='half' must be closed or open"):
        list(measure_batching(SHAPE, 1, "half", [1], [2, 3], [2, 3], seed=1))


def test_rows_of_drafts(tiny_model, text):
    given = {"text": str(text), "lengths": [1, 3], "prompts": 2, "prompt": 20, "new": 12, "seed": 1}
    for draft, more in (("ngram", {"copied": True}), (str(tiny_model), {}), ("early_exit", {"temperature": 1.0})):
        rows = list(measure_drafts(str(tiny_model), draft, **given, **more))
        assert [row["step"] for row in rows] == [1, 3]
        assert all(0 <= row["draft/acceptance"] <= 1 and row["draft/speedup"] > 0 for row in rows)
        assert all(1 <= row["draft/tokens_per_step"] <= 1 + row["step"] for row in rows)
        if draft == str(tiny_model):  # its own draft is always right
            assert [row["draft/acceptance"] for row in rows] == [1.0, 1.0]
            assert rows[1]["draft/tokens_per_step"] > 2


def test_an_overload_is_refused_or_waits():
    """At rates that a tiny network bears every answer is right and in time, and none is refused."""
    shape = {"block_size": 128, "n_layer": 1, "n_head": 1, "n_embd": 8}
    (row,) = measure_overload(shape, {"timeout_s": 10}, [30], 2.0, 2, seed=1, max_running=4)
    assert row["step"] == 30 and row["load/refused"] == 0
    assert 15 < row["load/goodput"] <= row["load/right"] < 50 and 0 < row["latency/answer_p99_ms"] < 500
