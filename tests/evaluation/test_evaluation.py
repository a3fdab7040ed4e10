"""The harness against transformers' model in it, and `evaluate` and `arena` as commands."""

import json
import random

import pytest
import torch

from lightning_gpt.cli import main
from lightning_gpt.evaluation.code_execution import network_cut, pass_at_k, run_program
from lightning_gpt.evaluation.language_model import Scorer, language_model
from lightning_gpt.evaluation.ratings import (
    Battle,
    bootstrap,
    bradley_terry,
    elo,
    length_controlled_win_rate,
    win_rate,
)
from lightning_gpt.evaluation.tasks import EVALUATIONS
from lightning_gpt.hub import open_model


class Request:
    """What lm-eval hands to a model."""

    def __init__(self, *args):
        self.args = args
        self.arguments = args
        self.task_name, self.doc_id, self.repeats = "t", 0, 1


@pytest.fixture(scope="module")
def both(tiny_model):
    """Our model and transformers' in lm-eval's interface."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = tokenizer.eos_token
    peer = HFLM(AutoModelForCausalLM.from_pretrained(tiny_model), tokenizer=tokenizer, device="cpu", max_length=64)
    net, ours = open_model(tiny_model)
    return language_model(net, ours, Scorer(net, batch_tokens=200, say=False), max_new_tokens=12), peer


def test_log_likelihoods_are_transformers(both):
    draw = random.Random(0)
    words = ["red", "green", "blue", "seven", "nine", "tree", "river"]
    texts = [[" ".join(draw.choices(words, k=draw.randint(*size))) for size in ((0, 14), (1, 3))] for _ in range(30)]
    requests = [Request(context, " " + continuation) for context, continuation in texts]
    requests += [Request("Question: x\nAnswer:", f" {letter}") for letter in "ABCD"]  # share a pass
    requests += [Request("trailing space ", "here"), Request("", "no context"), Request("long " * 30, "end")]
    found, expected = (one.loglikelihood(requests, disable_tqdm=True) for one in both)
    values, wanted = (torch.tensor([value for value, _ in one]) for one in (found, expected))
    torch.testing.assert_close(values, wanted, atol=2e-4, rtol=1e-5)
    assert [greedy for _, greedy in found] == [bool(greedy) for _, greedy in expected]


def test_rolling_and_generation_are_transformers(both):
    ours, peer = both
    texts = [Request("some text to be read"), Request("much longer text " * 12), Request("x")]
    found, expected = (one.loglikelihood_rolling(texts, disable_tqdm=True) for one in both)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-3, rtol=1e-5)
    greedy = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 12}
    asked = [Request(text, dict(greedy)) for text in ("hello", "a b c", "the end of")]
    assert ours.generate_until(asked) == list(peer.generate_until(asked, disable_tqdm=True))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A handful of examples of every kind."""
    place = tmp_path_factory.mktemp("sets")
    choice = [{"query": f"{n}?", "choices": ["yes", "no", "may be"], "gold": n % 3} for n in range(7)]
    rows = {
        "arc_easy": choice,
        "mmlu": [row | {"shots": "x\n", "subject": f"s{n % 2}"} for n, row in enumerate(choice)],
        "bbq": [row | {"biased": (n + 1) % 3} for n, row in enumerate(choice)],
        "toxigen": [{"query": "q", "choices": ["No", "Yes"], "gold": 1}] * 3,
        "winogrande": [{"queries": ["a cat", "a dog"], "target": " sat", "gold": 1}] * 3,
        "lambada": [{"query": "in the", "target": " end"}] * 3,
        "gsm8k": [{"shots": "", "query": "1+1", "answer": "2"}] * 2,
        "humaneval": [
            {"prompt": "def f(x):\n    return x\n", "test": "def check(g):\n    assert g(1) == 1", "entry_point": "f"}
        ],
        "mbpp": [{"task_id": 1, "text": "t", "code": "", "test_list": ["assert False"], "test_setup_code": ""}],
    }
    for name, some in rows.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return place


def test_evaluate_writes_results_and_a_report(tiny_model, sets, tmp_path, capsys, clean_process):
    words = tmp_path / "words.txt"
    words.write_text("to be or not to be")
    tasks = "arc_easy,mmlu,bbq,toxigen,winogrande,lambada,gsm8k,humaneval,mbpp"
    args = ["evaluate", str(tiny_model), "--tasks", tasks, "--data", str(sets), "--text", str(words)]
    main([*args, "--allow_code", "true", "--out", str(tmp_path / "one")])
    content = json.loads((tmp_path / "one" / "results.json").read_text())
    results = content["results"]
    assert list(results) == ["text", *tasks.split(",")] and content["command"].startswith("lightning-gpt evaluate ")
    assert results["humaneval"]["n"] == 1 and results["mbpp"]["value"] == 0.0
    assert set(results["mmlu"]["subjects"]) == {"s0", "s1"} and 0 <= results["bbq"]["biased_when_wrong"] <= 1
    net, tokenizer = open_model(tiny_model)
    ids = torch.tensor([[tokenizer.eos_id, *tokenizer.encode("to be or not to be")]])
    total, _ = net.loss(ids[:, :-1], ids[:, 1:])
    assert results["text"]["value"] == pytest.approx((total / torch.log(torch.tensor(2.0)) / 18).item(), rel=1e-4)
    # by hand: length-normalised choice of the likeliest ending
    right = []
    for row in map(json.loads, (sets / "arc_easy.jsonl").read_text().splitlines()):
        scores = []
        for choice in row["choices"]:
            context, answer = tokenizer.encode(row["query"]), tokenizer.encode(" " + choice)
            rows = torch.tensor([[*context, *answer]])
            log_p = torch.log_softmax(net(rows[:, :-1]).float(), -1)[0, len(context) - 1 :]
            scores.append(log_p.gather(1, torch.tensor(answer)[:, None]).sum().item() / len(choice))
        right.append(scores.index(max(scores)) == row["gold"])
    assert results["arc_easy"]["value"] == pytest.approx(sum(right) / len(right))
    page = (tmp_path / "one" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "winogrande" in page
    capsys.readouterr()
    main([*args, "--allow_code", "true", "--out", str(tmp_path / "one")])  # nothing is measured twice
    assert "arc_easy: already in" in capsys.readouterr().err
    main([*args[:2], "--tasks", "arc_easy", "--data", str(sets), "--limit", "3", "--out", str(tmp_path / "two"),
          "--compare", str(tmp_path / "one" / "results.json"), "--name", "other"])  # fmt: skip
    assert "(n=3 of 7" in capsys.readouterr().out
    assert "<th>other</th>" in (tmp_path / "two" / "report.html").read_text()


def test_chat_template_is_used_when_asked(tiny_model, sets, tmp_path, clean_process, capsys):
    main(["evaluate", str(tiny_model), "--tasks", "toxigen", "--data", str(sets), "--chat", "true"])
    assert "toxigen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tasks", "arc_esay"], "did you mean arc_easy"),
        (["--tasks", "hellaswag"], "to have it: python data/evaluation_sets.py"),
        (["--tasks", "truthfulqa"], "ask not to be trained on"),
        (["--tasks", "humaneval"], "add --allow_code true"),
        (["--tasks", "arc_easy", "--limit", "0"], "limit=0"),
        ([], "neither tasks nor text"),
        (["--tasks", "arc_easy", "--compare", "none.json"], "is no results.json"),
    ],
)
def test_bad_input(tiny_model, sets, capsys, clean_process, options, words):
    with pytest.raises(SystemExit):
        main(["evaluate", str(tiny_model), "--data", str(sets), *options])
    assert words in capsys.readouterr().err


def test_every_evaluation_has_a_source():
    assert {"mmlu", "gsm8k", "humaneval", "bbq", "toxigen", "truthfulqa"} <= EVALUATIONS.keys()
    assert all(one.source and one.about for one in EVALUATIONS.values())


# --- programs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "passed", "reason"),
    [
        ("assert sum([1, 2]) == 3", True, "passed"),
        ("from typing import List\nimport math, re, collections\nassert math.pi > 3", True, "passed"),
        ("assert 1 == 2", False, "AssertionError"),
        ("while True: pass", False, "timed out"),
        ("x = bytearray(8 << 30)", False, "MemoryError"),
        ("import os\nos.fork()", False, "not allowed here: os.fork"),
        ("import subprocess\nsubprocess.run(['true'])", False, "not allowed here"),
        ("import socket\nsocket.socket()", False, "not allowed here"),
        ("open('/tmp/lightning_gpt_evil', 'w')", False, "not allowed here: writing"),
        ("open('x.txt', 'w').write('a')\nassert open('x.txt').read() == 'a'", True, "passed"),
        ("import sys\nsys.exit(0)", False, "left before its end"),
        ("def f(:", False, "SyntaxError"),
    ],
)
def test_programs_are_fenced_in(program, passed, reason):
    outcome = run_program(program, seconds=2.0)
    assert outcome.passed == passed and reason in outcome.reason, outcome


def test_the_network_is_cut_where_the_machine_allows_it():
    assert network_cut() == () or network_cut()[0].endswith("unshare")


def test_pass_at_k_is_the_share_of_choices():
    from itertools import combinations

    for n, c, k in ((5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2)):
        outcomes = [True] * c + [False] * (n - c)
        drawn = [any(outcomes[i] for i in choice) for choice in combinations(range(n), k)]
        assert pass_at_k(n, c, k) == pytest.approx(sum(drawn) / len(drawn))


# --- ratings ---------------------------------------------------------------------------------------------------------


def battles(count: int, strengths: dict[str, float], bias: float = 0.0) -> list[Battle]:
    """Drawn by Bradley and Terry; with a bias the longer answer wins more often."""
    import math

    draw, found = random.Random(1), []
    for _ in range(count):
        one, other = draw.sample(sorted(strengths), 2)
        length = draw.gauss(60 if one == "wordy" else 0, 50) - (60 if other == "wordy" else 0)
        p = 1 / (1 + math.exp(-(strengths[one] - strengths[other] + bias * math.tanh(length / 50))))
        found.append(Battle(one, other, float(draw.random() < p), length))
    return found


def test_planted_ratings_are_recovered():
    import math

    planted = {"a": 0.0, "b": 0.8, "c": -0.6, "d": 1.5}
    fought = battles(3000, planted)
    mean = sum(planted.values()) / 4
    for name, (rating, low, high) in bootstrap(fought, draws=100).items():
        true = 1000 + (planted[name] - mean) * 400 / math.log(10)
        assert low - 8 < true < high + 8 and low < rating < high
    order = sorted(planted, key=planted.__getitem__)
    assert sorted(elo(fought), key=elo(fought).__getitem__) == order
    assert sorted(bradley_terry(fought), key=bradley_terry(fought).__getitem__) == order
    _, low, high, n = win_rate(fought, "d", "c")
    assert low < 1 / (1 + math.exp(-2.1)) < high and n > 400
    assert win_rate([Battle("a", "b", 0.5)] * 4, "a", "b")[0] == 0.5


def test_a_preference_for_length_is_taken_out():
    fought = battles(4000, {"wordy": 0.0, "terse": 0.0}, bias=1.5)
    plain = win_rate(fought, "wordy", "terse")[0]
    assert plain > 0.65 and length_controlled_win_rate(fought, "wordy", "terse") == pytest.approx(0.5, abs=0.06)


def test_an_unbeaten_model_has_a_rating():
    ratings = bradley_terry([Battle("a", "b", 1.0)] * 5)
    assert 1000 < ratings["a"] < 3000


def test_arena_rates_models(tiny_model, pair_rows, post_train, as_lines, tmp_path, capsys):
    happy = as_lines(tmp_path / "t.jsonl", [{"prompt": "q", "completion": " a wonderful, happy day"}] * 8)
    run = post_train("SFT", "InstructionData", {"init_from": str(tiny_model)}, {"train": str(happy)})
    out = tmp_path / "arena.json"
    args = ["arena", str(run), str(tiny_model), "--prompts", str(pair_rows), "--limit", "6", "--max_new_tokens", "8"]
    main([*args, "--grade", "true", "--out", str(out)])
    content = json.loads(out.read_text())
    assert len(content["battles"]) == 6 and len(content["answers"][str(run)]) == 6
    assert content["pairs"][0]["n"] == 6 and "Bradley-Terry" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["arena", str(tiny_model), "--prompts", str(pair_rows)])
    assert "name two or more different models" in capsys.readouterr().err
