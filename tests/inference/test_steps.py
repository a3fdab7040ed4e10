"""Steps of mixed requests against whole passes through the network."""

import pytest
import torch

from lightning_gpt.inference.runner import StepInput, TorchRunner
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.paged_cache import Span

BASE = {"vocab_size": 61, "block_size": 64, "n_layer": 3, "n_head": 4, "n_embd": 32}
NETWORKS = {
    "gpt2": {},
    "llama": {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "n_kv_head": 2, "bias": False},
    "alibi": {"position": "alibi"},
    "window": {"position": "rotary", "window": 5},
    "gemma": {"position": "rotary", "attention_softcap": 3.0, "logit_softcap": 5.0, "norm_place": "sandwich"},
    "sinks": {"position": "rotary", "attention_sinks": True, "n_kv_head": 1},
}


def network(**settings) -> GPT:
    """A small network with weights far from zero."""
    torch.manual_seed(0)
    net = GPT(GPTConfig(**{**BASE, **settings})).eval()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return net


TEXTS = [[(7 * n * n + n * row + 3) % 61 for n in range(length)] for row, length in enumerate((19, 7, 11))]
BLOCKS = [[3, 9, 1, 20, 5], [0, 2], [7, 6, 8]]
PLAN = [(5, 1, 0), (1, 1, 4), (6, 0, 1), (1, 4, 1), (0, 1, 5), (6, 0, 0)]
"""Tokens that each request reads in each step: chunks of different lengths side by side, single tokens, both."""


def run_plan(
    runner, dtype: torch.dtype | str | None = None, block_size: int = 4
) -> tuple[torch.Tensor, list[list[int]]]:
    """The logits after each chunk, and what had been read of that request."""
    cache = runner.make_cache(24, block_size, dtype)
    done, logits, read = [0, 0, 0], [], []
    for counts in PLAN:
        tokens, spans, wanted = [], [], []
        for row, count in enumerate(counts):
            if count:
                spans.append(Span(len(tokens), count, done[row], BLOCKS[row]))
                tokens += TEXTS[row][done[row] : done[row] + count]
                done[row] += count
                wanted.append(len(tokens) - 1)
                read.append(TEXTS[row][: done[row]])
        logits.append(runner.forward(StepInput(tokens, spans, wanted), cache))
    assert done == [19, 7, 11]
    return torch.cat(logits), read


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_steps_of_mixed_requests_give_the_logits_of_whole_passes(settings):
    net = network(**settings)
    logits, read = run_plan(TorchRunner(net))
    expected = torch.stack([net(torch.tensor([tokens]))[0, -1] for tokens in read])
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


def test_requests_that_begin_alike_share_blocks():
    net = network(**NETWORKS["llama"])
    runner = TorchRunner(net)
    cache = runner.make_cache(blocks=8, block_size=4)
    shared, first, second = [1, 2, 3, 4, 5, 6, 7, 8], [9, 10], [11, 12, 13]
    runner.forward(StepInput(shared + first, [Span(0, 10, 0, [0, 1, 2])], [9]), cache)
    logits = runner.forward(StepInput(second, [Span(0, 3, 8, [0, 1, 3])], [2]), cache)
    torch.testing.assert_close(logits[0], net(torch.tensor([shared + second]))[0, -1], atol=2e-5, rtol=1e-4)


def test_embeddings_are_read_in_place_of_tokens():
    net = network()
    runner = TorchRunner(net)
    own = {place: net.token_embedding.weight[20 + place].detach() for place in (1, 2)}
    logits = runner.forward(StepInput([5, 0, 0, 6], [Span(0, 4, 0, [0])], [3], own), runner.make_cache(1, 4))
    torch.testing.assert_close(logits[0], net(torch.tensor([[5, 21, 22, 6]]))[0, -1], atol=2e-5, rtol=1e-4)
