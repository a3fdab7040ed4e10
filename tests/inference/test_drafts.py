"""Drafts of every kind, alone and in the engine: texts stay what they are without."""

import pytest
import torch

from lightning_gpt.inference.batch_sampler import BatchSampler, Row
from lightning_gpt.inference.drafts import Ask, PromptLookup
from lightning_gpt.inference.engine import Engine
from lightning_gpt.inference.engine_config import EngineConfig
from lightning_gpt.inference.model_drafts import DraftModel, early_exit
from lightning_gpt.inference.one_by_one import one_by_one
from lightning_gpt.inference.request import Request
from lightning_gpt.inference.runner import StepInput, TorchRunner
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.inference.speculation import Proposal
from lightning_gpt.inference.speculative_generation import speculative_generate
from lightning_gpt.inference.speculator import Speculator
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.early_exit import EarlyExit
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.nn.paged_cache import Span

BASE = {"vocab_size": 40, "block_size": 128, "n_layer": 4, "n_head": 4, "n_embd": 32}
NETWORKS = {
    "gpt2": {},
    "llama": {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "n_kv_head": 2, "bias": False},
    "alibi": {"position": "alibi"},
    "window": {"position": "rotary", "window": 7, "window_pattern": "SL"},
    "experts": {"moe": MoEConfig(experts=4, top_k=2, every=2)},
}


def network(seed=0, **settings):
    """In float64, so that reading tokens together or one by one decides no draw."""
    torch.manual_seed(seed)
    net = GPT(GPTConfig(**{**BASE, **settings})).double().eval()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return net


def near(net, noise=0.02):
    """A network that thinks alike, to guess well but not always right."""
    other = GPT(net.config).double().eval()
    other.load_state_dict(net.state_dict())
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += noise * torch.randn_like(parameter)
    return other


def lookup(tokens, count, draft=None, key=0):
    return list((draft or PromptLookup(3, 1)).propose([Ask(key, tokens, count)])[0].tokens)


def test_prompt_lookup():
    assert lookup([1, 2, 3, 4, 1, 2], 2) == [3, 4]
    assert lookup([1, 2, 3, 4, 1, 2], 9) == [3, 4, 1, 2, 3, 4, 1, 2, 3]  # the loop goes on
    assert lookup([7, 7], 3) == [7, 7, 7]
    assert lookup([1, 2, 9, 1, 2, 8, 5, 1, 2], 1) == [8]  # the latest
    assert lookup([6, 1, 2, 9, 4, 2, 8, 6, 1, 2], 1) == [9]  # the longest
    assert lookup([1, 2, 3], 4) == []
    assert lookup([1], 4) == []
    assert lookup([1, 2, 3, 1], 4, PromptLookup(4, 2)) == []


def test_prompt_lookup_follows_growing_and_other_texts():
    draft, generator = PromptLookup(3, 2), torch.Generator().manual_seed(0)
    texts = {key: torch.randint(0, 4, (5,), generator=generator).tolist() for key in range(3)}
    for step in range(200):
        key = step % 3
        assert lookup(texts[key], 4, draft, key) == lookup(texts[key], 4, PromptLookup(3, 2))
        texts[key] += torch.randint(0, 4, (1 + step % 4,), generator=generator).tolist()
        if step % 50 == 40:  # as when the engine forgets the older half
            texts[key] = texts[key][len(texts[key]) // 2 :]
    draft.remove(0)
    draft.remove(99)


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_early_exit_is_the_first_layers_and_shares_their_weights(settings):
    net = network(**settings)
    short = EarlyExit(net, 2)
    ids = torch.randint(40, (2, 30))
    seen = {}
    handle = net.blocks[1].register_forward_hook(lambda _, __, out: seen.update(x=out[0]))
    net(ids)
    handle.remove()
    torch.testing.assert_close(short(ids), net.logits(net.final_norm(seen["x"])))
    assert {id(parameter) for parameter in short.parameters()} < {id(parameter) for parameter in net.parameters()}
    assert short.config.n_layer == 2


@pytest.mark.parametrize("layers", [0, 4, 9])
def test_early_exit_refuses_other_numbers_of_layers(layers):
    with pytest.raises(ValueError, match=f"layers={layers}"):
        EarlyExit(network(), layers)


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocabulary of 41 tokens, the network of 40"):
        DraftModel(TorchRunner(network(vocab_size=41)), 40)


def test_a_draft_model_guesses_what_it_would_say_itself():
    """With a cache that is kept in step: grown, cut back and changed texts; several at once, and more than fit."""
    net = network(**NETWORKS["llama"])
    draft, generator = DraftModel(TorchRunner(net), 40, texts=2), torch.Generator().manual_seed(1)
    sampler, texts = BatchSampler(40), {}
    for key in range(2):
        sampler.add(key, SamplingConfig(0.0), [0], 0)
        texts[key] = torch.randint(0, 40, (3 + 20 * key,), generator=generator).tolist()
    for step in range(12):
        counts = torch.randint(1, 6, (2,), generator=generator).tolist()
        proposals = draft.propose([Ask(key, texts[key], counts[key]) for key in (0, 1)], sampler)
        for key, own in enumerate(proposals):
            request = Request(texts[key], counts[key], SamplingConfig(0.0))
            assert list(own.tokens) == one_by_one(net, request)
            kept = list(own.tokens)[: int(torch.randint(0, counts[key] + 1, (), generator=generator))]
            texts[key] += [*kept, int(torch.randint(0, 40, (), generator=generator))]
            if step == 6:
                texts[key] = texts[key][4:]
    full = draft.propose([Ask(key, texts[0] * 9 if key == 2 else [1] * 120, 4) for key in (2, 3, 4)], sampler)
    assert [len(own.tokens) for own in full] == [0, 4, 0]  # longer than the draft's block_size; no blocks left
    for key in range(5):
        draft.remove(key)
    assert draft._pool.available == draft._pool.blocks


def test_long_texts_are_read_in_pieces(monkeypatch):
    monkeypatch.setattr("lightning_gpt.inference.model_drafts.AT_ONCE", 16)
    net, sampler = network(), BatchSampler(40)
    draft = DraftModel(TorchRunner(net), 40)
    texts = [torch.randint(40, (n,)).tolist() for n in (100, 3, 50)]
    asks = [Ask(key, text, 5) for key, text in enumerate(texts)]
    for own, text in zip(draft.propose(asks, sampler), texts):
        assert list(own.tokens) == one_by_one(net, Request(text, 5, SamplingConfig(0.0)))


def drafts_of(net):
    """Every kind."""
    return {
        "ngram": PromptLookup(3, 1),
        "good": DraftModel(TorchRunner(near(net)), 40),
        "bad": DraftModel(TorchRunner(network(seed=9)), 40),
        "early": early_exit(net, 2, TorchRunner),
        "sampled": DraftModel(TorchRunner(near(net)), 40, sampled=True),
    }


@pytest.mark.parametrize("kind", ["ngram", "good", "bad", "early", "sampled"])
@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_greedy_text_is_the_same_with_any_draft(settings, kind):
    net = network(**settings)
    prompt = torch.randint(40, (9,), generator=torch.Generator().manual_seed(3)).tolist()
    expected = one_by_one(net, Request(prompt, 40, SamplingConfig(0.0)))
    made, steps = speculative_generate(TorchRunner(net), drafts_of(net)[kind], prompt, 40, SamplingConfig(0.0))
    assert made == expected
    if kind == "good":
        assert sum(kept for _, kept in steps) > 10


@pytest.mark.parametrize("kind", ["ngram", "good", "early"])
def test_sampled_text_of_a_seed_is_the_same_with_chosen_drafts(kind):
    net = network()
    sampling = SamplingConfig(0.5, top_k=9, top_p=0.95, repetition_penalty=1.1, frequency_penalty=0.2)
    for seed in range(4):
        expected = one_by_one(net, Request([1, 2, 3], 50, sampling, seed))
        made, steps = speculative_generate(TorchRunner(net), drafts_of(net)[kind], [1, 2, 3], 50, sampling, seed)
        assert made == expected
        assert steps


@pytest.mark.parametrize("length", [1, 3, 8])
def test_an_end_token_inside_a_draft_ends_the_text(length):
    net = network()
    plain = one_by_one(net, Request([4, 5], 30, SamplingConfig(0.0)))
    for end in set(plain):
        expected = plain[: plain.index(end) + 1]
        draft = DraftModel(TorchRunner(net), 40)  # the network itself: all is kept
        options = {"end_ids": [end], "length": length}
        made, _ = speculative_generate(TorchRunner(net), draft, [4, 5], 30, SamplingConfig(0.0), **options)
        assert made == expected


def traffic(seed, count=14):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    requests = []
    for number in range(count):
        prompt = torch.randint(0, 40, (draw(1, 30),), generator=generator).tolist()
        sampling = [SamplingConfig(0.0), SamplingConfig(0.6, top_k=8), SamplingConfig(0.8, top_p=0.7, min_p=0.02)]
        ends = [draw(0, 40)] if draw(0, 2) else []
        most, least = draw(1, 60), 0
        requests.append(
            Request(
                prompt,
                most,
                sampling[draw(0, 3)],
                number,
                end_ids=ends,
                min_new_tokens=least,
                logprobs=1,
                overflow="slide",
            )
        )
    return requests


@pytest.mark.parametrize("kind", ["ngram", "good", "bad", "early"])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("tight", [True, False])
def test_the_engine_gives_the_same_texts_with_chosen_drafts(kind, adaptive, tight):
    net, requests = network(block_size=48), traffic(1)
    speculator = Speculator(drafts_of(net)[kind], 4, adaptive, max_texts=6 if tight else 64)
    blocks = 24 if tight else 300
    config = EngineConfig(max_running=10, token_budget=24, cache_blocks=blocks, block_size=4)
    engine = Engine(TorchRunner(net), config=config, drafter=speculator)
    for request, completion in zip(requests, engine.complete(requests)):
        assert completion.tokens == one_by_one(net, request)
    stats = speculator.stats()
    if kind != "ngram" or not adaptive:
        assert stats.proposed > 0
    if not adaptive:
        assert (stats.accepted > 0) or kind == "bad"
    engine.scheduler.pool.check([])


def test_the_engine_with_sampled_drafts_leaves_the_distribution():
    """Tokens 1 and 2 of many requests, which their drafts make in one step, against exact probabilities."""
    net = network(vocab_size=5, n_layer=2)
    sampling, count = SamplingConfig(0.7), 700
    speculator = Speculator(DraftModel(TorchRunner(network(3, vocab_size=5, n_layer=1)), 5, 100, True), 3, False, 64)
    engine = Engine(TorchRunner(net), config=EngineConfig(64, token_budget=512), drafter=speculator)
    made = engine.complete([Request([1, 2], 4, sampling, seed) for seed in range(count)])
    assert 0.1 < speculator.stats().acceptance < 0.95
    exact = BatchSampler(5)
    exact.add(0, sampling, [1, 2], 0)
    counts = torch.zeros(5, 5)
    for own in made:
        counts[own.tokens[1], own.tokens[2]] += 1
    expected = torch.zeros(5, 5)
    runner = TorchRunner(net)

    def after(*text):
        logits = runner.forward(StepInput(text, [Span(0, len(text), 0, [0])], [len(text) - 1]), runner.make_cache(1))
        return exact.distributions(logits, [Row(0)])[0]

    first = after(1, 2)
    for a in range(5):
        second = after(1, 2, a)
        for b in range(5):
            expected[b] += first[a] * second[b] * after(1, 2, a, b)
    statistic = ((counts - expected * count) ** 2 / (expected * count)).sum()
    assert statistic < 62  # chi-square with 24 degrees of freedom, 3e-5
    uniform = torch.full((5, 5), count / 25)
    assert ((counts - uniform) ** 2 / uniform).sum() > 100


def test_proposals_of_the_network_itself_are_all_kept():
    net = network()
    draft = DraftModel(TorchRunner(net), 40, sampled=True)
    made, steps = speculative_generate(TorchRunner(net), draft, [1, 2, 3], 41, SamplingConfig(1.0), 0, length=4)
    assert len(made) == 41
    assert all(kept == drafted for drafted, kept in steps)
    assert Proposal().tokens == ()


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_drafts_through_the_compiled_runner_change_no_token(weights):
    """Its logits are the same to the bit whatever is read in one step, so texts are too, in any type."""
    pytest.importorskip("lightning_gpt.inference.native_runner")
    from lightning_gpt.inference.kernels.library import load_library
    from lightning_gpt.inference.native_runner import NativeRunner

    if load_library() is None:
        pytest.skip("no compiler")
    net = network(**NETWORKS["llama"], n_embd=64).float()

    def make(one):
        return NativeRunner(one, weights)

    drafts = {
        "ngram": PromptLookup(3, 1),
        "early": early_exit(net, 2, make),
        "same": DraftModel(make(net), 40),
    }
    sampling = SamplingConfig(0.7, top_p=0.9)
    for seed in range(3):
        expected, _ = speculative_generate(make(net), None, [1, 2, 3], 60, sampling, seed)
        for draft in drafts.values():
            made, _ = speculative_generate(make(net), draft, [1, 2, 3], 60, sampling, seed)
            assert made == expected
            draft.remove(0)
