"""Our model in lm-eval's interface against its own model of transformers, request by request; batches against single
texts; shared beginnings against whole ones."""

import random

import pytest
import torch
from conftest import Request

from lightning_gpt.evaluation.lm_eval_model import language_model
from lightning_gpt.evaluation.scoring import Scorer
from lightning_gpt.evaluation.shared_prefixes import Row, common_prefix, families
from lightning_gpt.hub import open_model
from lightning_gpt.nn import GPT, GPTConfig

WORDS = ["red", "green", "blue", "seven", "nine", "tree", "river"]


@pytest.fixture(scope="module")
def opened(tiny_model):
    return open_model(tiny_model)


@pytest.fixture(scope="module")
def requests():
    """Contexts and continuations of all lengths; questions with several answers; examples that all share."""
    draw = random.Random(0)
    texts = [[" ".join(draw.choices(WORDS, k=draw.randint(*size))) for size in ((0, 14), (1, 3))] for _ in range(30)]
    found = [Request(context, " " + continuation) for context, continuation in texts]
    found += [Request("Question: x\nAnswer:", f" {letter}") for letter in "ABCD"]
    shots = "one is odd, two is even, "
    found += [Request(f"{shots}{word} is", f" {answer}") for word in WORDS for answer in ("odd", "even", "neither")]
    return [*found, Request("trailing space ", "here"), Request("", "no context"), Request("long " * 30, "end")]


@pytest.mark.parametrize(("batch_tokens", "share"), [(200, True), (4000, True), (1, False)])
def test_log_likelihoods_are_those_of_transformers(opened, peer, requests, batch_tokens, share):
    ours = language_model(*opened, Scorer(opened[0], batch_tokens, share, say=False))
    found, expected = (one.loglikelihood(requests, disable_tqdm=True) for one in (ours, peer))
    values, wanted = (torch.tensor([value for value, _ in one]) for one in (found, expected))
    torch.testing.assert_close(values, wanted, atol=2e-4, rtol=1e-5)
    assert [greedy for _, greedy in found] == [bool(greedy) for _, greedy in expected]


def test_whole_texts_have_the_log_likelihoods_of_transformers(opened, peer):
    ours = language_model(*opened, Scorer(opened[0], 200, say=False))
    texts = [Request("some text to be read"), Request("much longer text " * 12), Request("x")]
    found, expected = (one.loglikelihood_rolling(texts, disable_tqdm=True) for one in (ours, peer))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-3, rtol=1e-5)


def test_answers_are_those_of_transformers(opened, peer):
    ours = language_model(*opened, Scorer(opened[0], say=False), batch_size=2)
    prompts = ["hello", "a b c", "the end of", "a text that is much longer than the model's context, " * 2]
    asked = [Request(text, {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 12}) for text in prompts]
    expected = list(peer.generate_until(asked, disable_tqdm=True))
    assert ours.generate_until(asked) == expected
    # a stop string from the middle of an answer ends it there, for this request alone
    stop = expected[0][3:5]
    asked[0] = Request(prompts[0], {"until": [stop, "never said"], "do_sample": False, "max_gen_toks": 12})
    found = ours.generate_until(asked)
    assert found == list(peer.generate_until(asked, disable_tqdm=True))
    assert found[0] == expected[0][: expected[0].index(stop)] and found[1:] == expected[1:]


def test_drawn_answers_do_not_depend_on_the_batch(opened):
    settings = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "until": [], "max_gen_toks": 8}
    asked = [Request(text, settings) for text in ("a", "some", "longer prompts", "a")]
    scorer = Scorer(opened[0], say=False)
    one, many, other = (
        language_model(*opened, scorer, size, seed).generate_until(asked) for size, seed in ((1, 0), (4, 0), (4, 9))
    )
    assert one == many != other
    assert one[0] != one[3]


@pytest.mark.parametrize(
    "settings",
    [
        {"position": "learned"},
        {"position": "alibi", "n_kv_head": 1},
        {"position": "rotary", "window": 9, "window_pattern": "SL"},
        {"moe": {"experts": 4, "top_k": 2}, "position": "rotary"},
        {"moe": {"experts": 4, "routing": "expert_choice"}, "position": "rotary"},
    ],
)
def test_shared_beginnings_change_nothing(settings):
    torch.manual_seed(1)
    shape = {"vocab_size": 20, "block_size": 48, "n_layer": 2, "n_head": 2, "n_embd": 32, "init_std": 0.3}
    net = GPT(GPTConfig.from_dict(shape | settings)).eval()
    draw = random.Random(2)
    shots = draw.choices(range(20), k=18)
    asked = []
    for _ in range(6):
        context = shots + draw.choices(range(20), k=draw.randint(1, 12))
        asked += [(context, draw.choices(range(20), k=draw.randint(1, 5))) for _ in range(3)]
    asked += [(draw.choices(range(20), k=60), draw.choices(range(20), k=3)) for _ in range(3)]
    one_by_one = [Scorer(net, share=False, say=False).continuations([request])[0] for request in asked]
    together = Scorer(net, batch_tokens=70, say=False).continuations(asked)
    torch.testing.assert_close(torch.tensor(together), torch.tensor(one_by_one), atol=1e-4, rtol=1e-5)


def test_families_share_what_pays():
    draw = random.Random(3)
    shots = tuple(draw.choices(range(9), k=50))
    questions = [tuple(draw.choices(range(9), k=20)) for _ in range(5)]
    choices = [Row((*question, *draw.choices(range(9), k=4)), 3) for question in questions for _ in range(4)]
    found = families(choices, least=8)
    assert sorted(len(family.rows) for family in found) == [4] * 5 and min(family.shared for family in found) >= 20
    (family,) = families([row._replace(tokens=shots + row.tokens) for row in choices[::4]], least=8)
    assert family.shared >= 50 and family.rows[0].tokens[:50] == shots
    for family in families([Row((1, 2, 3, 4, n), 5) for n in range(3)], least=1):
        assert family.shared == 0  # every token is scored: nothing may be shared
    assert [common_prefix(a, b) for a, b in (((1, 2), (1, 3)), ((), (1,)), ((1, 2), (1, 2, 3)))] == [1, 0, 2]
