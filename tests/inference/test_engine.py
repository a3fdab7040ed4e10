"""The engine against one text at a time: whatever is beside a request, and whenever it comes, its text is the same."""

import random
from dataclasses import replace

import pytest
import torch

from lightning_gpt.inference.engine import Engine
from lightning_gpt.inference.engine_config import EngineConfig
from lightning_gpt.inference.one_by_one import one_by_one
from lightning_gpt.inference.request import Completion, Request
from lightning_gpt.inference.row_filters import NotFiniteError
from lightning_gpt.inference.runners import make_runner
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.inference.scheduler import QueueFullError
from lightning_gpt.inference.speculation import Proposal
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.text.byte import byte_tokenizer

SHAPE = {"vocab_size": 40, "block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 16}
NETWORKS = {
    "gpt2": {},
    "llama": {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "n_kv_head": 1, "bias": False},
    "window": {"position": "rotary", "window": 5},
    "experts": {"position": "rotary", "moe": MoEConfig(experts=4, top_k=2, capacity_factor=0.6)},
}
GREEDY = SamplingConfig(temperature=0)
HOT = SamplingConfig(temperature=1.5, top_k=20)
PENALIZED = SamplingConfig(temperature=0.7, repetition_penalty=1.3, top_p=0.9)


def network(**settings):
    """In float64, where no two tokens are so nearly equally likely that the order of sums decides."""
    torch.manual_seed(0)
    net = GPT(GPTConfig(**{**SHAPE, **settings})).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return net


@pytest.fixture(scope="module", params=NETWORKS)
def net(request):
    return network(**NETWORKS[request.param])


@pytest.fixture(scope="module")
def gpt2():
    return network(**NETWORKS["gpt2"])


def random_request(draw, width, beginnings):
    start = draw.choice(beginnings)[: draw.randint(0, 16)]
    prompt = [*start, *(draw.randrange(40) for _ in range(draw.randint(1, 6)))]
    embeds = None
    if draw.random() < 0.1:
        embeds = torch.randn(
            len(prompt), width, dtype=torch.float64, generator=torch.Generator().manual_seed(len(prompt))
        )
    overflow = "slide" if embeds is None and draw.random() < 0.3 else "refuse"
    if overflow == "slide" and draw.random() < 0.3:
        prompt = [draw.randrange(40) for _ in range(draw.randint(33, 40))]
    return Request(
        prompt,
        draw.randint(1, 40 if overflow == "slide" else 33 - len(prompt)),
        draw.choice([GREEDY, GREEDY, HOT, PENALIZED]),
        draw.randrange(1000),
        end_ids=draw.sample(range(40), draw.choice([0, 2])),
        banned_ids=draw.sample(range(40), draw.choice([0, 0, 3])),
        priority=draw.choice([0, 0, 1, 7]),
        tenant=draw.choice(["", "", "other"]),
        embeds=embeds,
        overflow=overflow,
        logprobs=draw.choice([None, None, 2]),
        prompt_logprobs=draw.choice([None] * 7 + [1]) if len(prompt) <= 32 else None,
    )


class Guesser:
    """Guesses from the answers, and wrongly in between."""

    def __init__(self, draw):
        self.draw_, self.answers, self.sizes = draw, {}, {}

    def expect(self, key, prompt, answer):
        self.answers[key], self.sizes[key] = answer, len(prompt)

    def propose(self, rows, sampler):
        return [Proposal(self._one(row)) for row in rows]

    def observe(self, outcomes, tokens, seconds):
        assert tokens >= sum(1 + drafted for drafted, _ in outcomes.values())

    def _one(self, row):
        made = len(row.tokens) - self.sizes[row.key]
        guess = self.answers[row.key][made : made + self.draw_.randint(0, 4)]
        if guess and self.draw_.random() < 0.5:
            guess[self.draw_.randrange(len(guess))] = 3
        return guess

    def remove(self, key):
        del self.answers[key]


@pytest.mark.parametrize("guessing", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_text_of_a_random_traffic_is_that_of_the_request_alone(net, seed, guessing):
    draw = random.Random(seed)
    guesser = Guesser(draw) if guessing else None
    config = EngineConfig(
        max_running=draw.choice([2, 5, 8]),
        token_budget=draw.choice([8, 11, 60]),
        cache_blocks=draw.choice([8, 12, 60]),
        block_size=draw.choice([4, 5]),
    )
    engine = Engine(make_runner(net), config=config, vocab_size=38, drafter=guesser)
    beginnings = [[draw.randrange(40) for _ in range(16)] for _ in range(2)]
    asked, got = {}, {}

    def take(outputs):
        for output in outputs:
            got[output.key].add(output)

    for _ in range(100):
        if draw.random() < 0.5:
            request = random_request(draw, 16, beginnings)
            key = engine.add(request)
            asked[key], got[key] = request, Completion()
            if guesser is not None:  # of long prompts the beginning is forgotten: it guesses wrongly there
                guesser.expect(key, request.prompt, one_by_one(net, request, 38))
        if asked and draw.random() < 0.04:
            engine.cancel(draw.choice(list(asked)))
        take(engine.step())
        engine.scheduler.pool.check([row.blocks for row in engine.scheduler.running])
    while engine.busy:
        take(engine.step())
    stats = engine.stats()
    assert stats.blocks_held == stats.running == stats.waiting == 0
    assert stats.shared_tokens > 0
    assert sum(stats.finished.values()) == len(asked)
    if config.cache_blocks == 8 and config.max_running > 2:
        assert stats.preemptions > 0
    for key, request in asked.items():
        tokens, finish = got[key].tokens, got[key].finish
        expected = one_by_one(net, request, 38)
        if finish == "cancelled":
            assert tokens == expected[: len(tokens)]
            continue
        assert tokens == expected
        assert finish == ("eos" if tokens[-1] in request.end_ids else "length")
        assert len(got[key].logprobs) == (0 if request.logprobs is None else len(tokens))
        assert (got[key].prompt is None) == (request.prompt_logprobs is None)
    if guessing:
        assert stats.steps < sum(len(one.tokens) for one in got.values())


def test_compiled_steps_give_the_same_text_whatever_is_beside_it():
    """In float32 and to the bit, so the same runner alone is what to compare with."""
    native = pytest.importorskip("lightning_gpt.inference.native_runner")
    try:
        runner = native.NativeRunner(network(n_embd=32, **NETWORKS["llama"], block_size=96).float())
    except RuntimeError as error:
        pytest.skip(str(error))
    draw = random.Random(0)
    commons = [[draw.randrange(40) for _ in range(35)] for _ in range(2)]
    requests = [random_request(draw, 32, [[]]) for _ in range(60)]
    requests = [
        replace(one, prompt=[*draw.choice(commons), *one.prompt], max_new_tokens=one.max_new_tokens + 25)
        for one in requests
    ]
    alone = EngineConfig(max_running=1, share_prefixes=False)
    expected = [Engine(runner, config=alone, vocab_size=38).complete([one])[0] for one in requests]
    crowded = Engine(runner, None, EngineConfig(5, token_budget=11, cache_blocks=9), vocab_size=38)
    assert crowded.complete(requests) == expected
    assert crowded.stats().preemptions > 0
    assert crowded.stats().shared_tokens > 0


def test_right_guesses_save_steps(gpt2):
    request = Request([1, 2, 3], 24, GREEDY)
    expected = one_by_one(gpt2, request)
    guesser = Guesser(random.Random(0))
    guesser.propose = lambda rows, _: [Proposal(expected[len(row.tokens) - 3 :][:3]) for row in rows]
    guesser.expect(0, request.prompt, expected)
    engine = Engine(make_runner(gpt2), drafter=guesser)
    (completion,) = engine.complete([request])
    assert completion.tokens == expected
    assert engine.stats().steps == 7  # the prompt, then four tokens a step: 1 + 5 * 4 + 3
    assert engine.stats().generated_tokens == 24


@pytest.mark.parametrize("budget", [8, 64])
def test_log_probabilities_are_those_of_a_whole_pass(net, budget):
    engine = Engine(make_runner(net), config=EngineConfig(max_running=4, token_budget=budget, block_size=4))
    requests = [
        Request([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], 9, HOT, seed=2, logprobs=3, prompt_logprobs=2),
        Request([2, 7, 1], 5, PENALIZED, logprobs=0, prompt_logprobs=0, banned_ids=[4]),
        Request([8], 5, GREEDY, prompt_logprobs=40),
        Request([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], 0, prompt_logprobs=1),
    ]
    if net.config.moe is not None:  # a whole pass drops tokens for want of capacity
        net = network(position="rotary", moe=MoEConfig(experts=4, top_k=2))
    for request, done in zip(requests, engine.complete(requests)):
        text = [*request.prompt, *done.tokens]
        assert len(done.tokens) == request.max_new_tokens
        logprobs_TV = net(torch.tensor([text]))[0].float().log_softmax(-1).detach()
        found = {len(request.prompt) + place: one for place, one in enumerate(done.logprobs)}
        found |= {place: one for place, one in enumerate(done.prompt) if place}
        assert done.prompt[0] is None
        assert len(done.prompt) == len(request.prompt)
        assert len(found) == (len(request.prompt) - 1 if request.logprobs is None else len(text) - 1)
        for place, one in found.items():
            assert one.token == text[place]
            assert one.logprob == pytest.approx(float(logprobs_TV[place - 1, text[place]]), abs=1e-5)
            count = request.prompt_logprobs if place < len(request.prompt) else request.logprobs
            best = logprobs_TV[place - 1].topk(count)
            assert [index for index, _ in one.top] == best.indices.tolist()
            assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_requests_that_begin_alike_are_read_once(gpt2):
    engine = Engine(make_runner(gpt2), config=EngineConfig(block_size=4))
    prompt = list(range(18))
    requests = [Request(prompt, 5, HOT, seed=seed) for seed in range(4)]
    requests += [Request(prompt, 5, HOT, seed=9, tenant="other")]
    assert [one.tokens for one in engine.complete(requests)] == [one_by_one(gpt2, one) for one in requests]
    assert engine.stats().shared_tokens == 3 * 16
    engine.complete([Request([*prompt, *one_by_one(gpt2, requests[0]), 7], 3)])  # the next turn of a conversation
    assert engine.stats().shared_tokens == 3 * 16 + 20
    alone = Engine(make_runner(gpt2), config=EngineConfig(block_size=4, share_prefixes=False))
    alone.complete(requests)
    assert alone.stats().shared_tokens == 0


def test_pictures_are_read_once_and_told_apart(gpt2):
    engine = Engine(make_runner(gpt2), config=EngineConfig(block_size=4))
    first, second = torch.randn(2, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prompt = [0] * 9 + [5, 6]
    requests = [Request(prompt, 4, GREEDY, embeds=embeds) for embeds in (first, second, first[:8], None, first.clone())]
    for request in requests:
        assert engine.complete([request])[0].tokens == one_by_one(gpt2, request)
    assert engine.stats().shared_tokens == 8 + 8
    engine.complete([Request(prompt, 4, GREEDY, embeds=first.float().double())])
    assert engine.stats().shared_tokens == 16


def test_no_end_before_the_least_length(gpt2):
    free = one_by_one(gpt2, Request([1, 2, 3], 20, HOT, seed=4))
    request = {"prompt": [1, 2, 3], "max_new_tokens": 20, "sampling": HOT, "seed": 4, "end_ids": set(range(0, 40, 2))}
    engine = Engine(make_runner(gpt2))
    short, long = engine.complete([Request(**request), Request(**request, min_new_tokens=6)])
    assert len(short.tokens) == next(place for place, token in enumerate(free, 1) if token % 2 == 0) < 6
    assert len(long.tokens) >= 7
    assert all(token % 2 for token in long.tokens[:6])


def test_stop_strings_across_tokens():
    net, tokenizer = network(vocab_size=257), byte_tokenizer(end_of_text=True)
    engine = Engine(make_runner(net), tokenizer)
    settings = {"prompt": tokenizer.encode("To be"), "max_new_tokens": 25, "sampling": HOT}
    whole = engine.complete([Request(**settings, seed=seed) for seed in range(20)])
    for seed, one in enumerate(whole):
        assert one.text == tokenizer.decode(one.tokens)
        middle = len(one.text) // 2
        stop = one.text[middle : middle + 3]
        (cut,) = engine.complete([Request(**settings, seed=seed, stop=["never there", stop])])
        assert cut.finish == "stop"
        assert cut.text == one.text[: one.text.index(stop)]
        assert cut.tokens == one.tokens[: len(cut.tokens)]
        end = one.tokens[4]
        (ended,) = engine.complete([Request(**settings, seed=seed, end_ids=[end])])
        assert ended.text == tokenizer.decode(one.tokens[: one.tokens.index(end)])
        (unwritten,) = engine.complete([Request(**settings, seed=seed, unwritten_ids=[end])])
        assert unwritten.text == tokenizer.decode([token for token in one.tokens if token != end])
    assert engine.stats().finished == {"length": 40, "stop": 20, "eos": 20, "cancelled": 0}


def test_cancelling_frees_at_once_and_leaves_the_others_alone(gpt2):
    engine = Engine(make_runner(gpt2), config=EngineConfig(max_running=2, cache_blocks=8, block_size=4))
    requests = [Request([n, 2, 3, 4, 5], 8, GREEDY) for n in range(4)]
    keys = [engine.add(request) for request in requests]
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (2, 2)
    assert engine.cancel(keys[0])
    assert not engine.cancel(keys[0])
    assert engine.cancel(keys[3])
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)
    outputs = engine.step()
    assert [(output.key, output.finish) for output in outputs if output.token is None] == [
        (keys[0], "cancelled"),
        (keys[3], "cancelled"),
    ]
    texts = {keys[1]: one_by_one(gpt2, requests[1])[:1], keys[2]: []}
    for output in outputs:
        if output.token is not None:
            texts[output.key].append(output.token)
    while engine.busy:
        for output in engine.step():
            texts[output.key].append(output.token)
    assert texts == {keys[1]: one_by_one(gpt2, requests[1]), keys[2]: one_by_one(gpt2, requests[2])}
    assert not engine.step()


def test_a_stream_that_is_left_cancels_the_rest(gpt2):
    engine = Engine(make_runner(gpt2), config=EngineConfig(max_running=2, max_waiting=2))
    requests = [Request([n], 5, GREEDY) for n in range(7)]  # more than may wait
    assert [one.tokens for one in engine.complete(requests)] == [one_by_one(gpt2, one) for one in requests]
    for place, output in engine.stream(*requests):
        assert (place, output.token) == (0, one_by_one(gpt2, requests[0])[0])
        break
    engine.step()
    assert not engine.busy
    assert engine.stats().blocks_held == 0


def test_a_full_queue_refuses(gpt2):
    engine = Engine(make_runner(gpt2), config=EngineConfig(max_running=1, max_waiting=2))
    for _ in range(2):
        engine.add(Request([1], 3))
    with pytest.raises(QueueFullError, match="2 requests are waiting, max_waiting=2"):
        engine.add(Request([1], 3))
    engine.step()
    engine.add(Request([1], 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [40]}, "outside the vocabulary of 40"),
        ({"prompt": [-1]}, "outside the vocabulary of 40"),
        ({"max_new_tokens": 31}, "prompt of 3 tokens and max_new_tokens=31 exceed block_size=32: ask for at most 30"),
        ({"prompt": [1] * 33, "max_new_tokens": 0}, "exceed block_size=32: ask for at most 0"),
        ({"prompt": [1] * 33, "overflow": "slide", "prompt_logprobs": 0}, "prompt_logprobs of 33 tokens exceed"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"min_new_tokens": 17}, "min_new_tokens=17 must be from 0 to max_new_tokens=16"),
        ({"logprobs": -1}, "logprobs=-1"),
        ({"banned_ids": [40]}, "banned_ids has 40"),
        ({"stop": ["x"]}, "stop strings need an engine with a tokenizer"),
        ({"overflow": "wrap"}, "overflow='wrap'"),
        ({"embeds": torch.zeros(4, 16)}, r"embeds have shape \(4, 16\), the prompt asks for \(3, 16\)"),
        ({"embeds": torch.zeros(3, 16), "overflow": "slide"}, "overflow=slide reads a window again"),
        ({"max_new_tokens": 26}, "up to 28 tokens needs 7 blocks of 4, the cache has 6"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_before_anything_is_generated(gpt2, settings, message):
    engine = Engine(make_runner(gpt2), config=EngineConfig(max_running=2, cache_blocks=6, block_size=4))
    with pytest.raises(ValueError, match=message):
        engine.add(Request(**{"prompt": [1, 2, 3], **settings}))
    assert not engine.busy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_running": 0}, "max_running=0"),
        ({"token_budget": 5, "max_running": 6}, "token_budget=5 must be at least max_running=6"),
        ({"cache_blocks": 0}, "cache_blocks=0"),
        ({"cache_blocks": 3, "cache_bytes": 10}, "exclude each other"),
        ({"cache_bytes": 10}, "cache_bytes=10 hold no block of 8,192 bytes"),
    ],
)
def test_settings_that_cannot_work(gpt2, settings, message):
    with pytest.raises(ValueError, match=message):
        Engine(make_runner(gpt2), config=EngineConfig(**settings))


def test_the_cache_takes_the_bytes_it_is_given(gpt2):
    assert Engine(make_runner(gpt2), config=EngineConfig(cache_bytes=50_000, block_size=4)).cache.blocks == 24
    assert Engine(make_runner(gpt2), config=EngineConfig(max_running=3, block_size=4)).cache.blocks == 24


def test_expert_choice_is_refused():
    net = network(moe=MoEConfig(experts=4, routing="expert_choice", balance="none"))
    engine = Engine(make_runner(net))
    with pytest.raises(ValueError, match="expert_choice cannot generate"):
        engine.complete([Request([1], 1)])


def test_a_request_that_can_draw_nothing_does_not_harm_the_others(gpt2):
    """A step says whose it is; when that is cancelled, the others go on as if it had never been."""
    engine = Engine(make_runner(gpt2))
    good = [Request([3, 4, 5], 6, GREEDY), Request([7], 6, HOT, seed=2)]
    alone = [engine.complete([request])[0].tokens for request in good]
    keys = [engine.add(request) for request in good]
    bad = engine.add(Request([9, 9], 6, HOT, banned_ids=range(40)))
    made = {key: [] for key in [*keys, bad]}
    failures = 0
    while engine.busy:
        try:
            outputs = engine.step()
        except NotFiniteError as error:
            assert error.keys == [bad]
            failures += engine.cancel(bad)
            continue
        _ = [made[output.key].append(output.token) for output in outputs]
    assert failures == 1 and made[bad] == [None] and [made[key] for key in keys] == alone
