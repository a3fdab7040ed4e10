"""The arena: models that answer, judges that compare, and `arena` as a command."""

import json

import pytest

from lightning_gpt.cli import main
from lightning_gpt.evaluation.arena import answers_of, as_lines, as_text, fight, grades, standings
from lightning_gpt.hub import open_model

PROMPTS = ["what is", [{"role": "user", "content": "tell me"}], "one", "a longer prompt than the others", "two", "x"]


class Shortest:
    """A judge that likes the shorter answer, and says so when it is asked for a grade."""

    def compare(self, prompts, first, second):
        return [0.5 if len(a) == len(b) else float(len(a) < len(b)) for a, b in zip(first, second)]

    def score(self, prompts, answers):
        return [-float(len(answer)) for answer in answers]


def test_answers_depend_on_the_seed_and_not_on_the_batch(tiny_model):
    opened = open_model(tiny_model)
    one, many, other = (
        answers_of(*opened, PROMPTS, 8, batch_size=size, seed=seed) for size, seed in ((1, 0), (6, 0), (6, 1))
    )
    assert one == many != other and len(one) == len(PROMPTS)


def test_conversations_are_asked_in_the_template(tiny_model):
    from dataclasses import replace

    net, tokenizer = open_model(tiny_model)
    plain = answers_of(net, tokenizer, ["tell me", "tell me<|endoftext|>"], 8, temperature=0)
    source = "{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}"
    tokenizer.roles = replace(tokenizer.roles, chat_template=source)
    turn = [{"role": "user", "content": "tell me"}]
    asked = answers_of(net, tokenizer, ["tell me", turn], 8, temperature=0)
    assert asked[0] == asked[1] and asked[0] not in plain


def test_the_better_model_stands_first():
    said = {"terse": ["a"] * 30, "even": ["aa"] * 20 + ["b"] * 10, "wordy": ["aaaa"] * 30}
    battles = fight(["p"] * 30, said, Shortest())
    assert len(battles) == 90 and {battle.first for battle in battles[:3]} == {"terse", "even"}
    found = standings(battles, list(said), draws=40)
    assert [row["model"] for row in found["ratings"]] == ["terse", "even", "wordy"]
    assert all(row[way]["low"] <= row[way]["value"] <= row[way]["high"] for row in found["ratings"]
               for way in ("bradley_terry",))  # fmt: skip
    pair = found["pairs"][0]
    assert (pair["first"], pair["second"], pair["n"]) == ("terse", "even", 30)
    assert pair["win_rate"]["value"] == pytest.approx((20 + 5) / 30)
    found["grades"] = grades(["p"] * 30, said, Shortest())
    assert found["grades"]["wordy"] == {"mean": -4.0, "stderr": 0.0, "n": 30}
    text = "\n".join(as_lines(found))
    assert "terse beats even: 83.3% (" in text and "wordy: grade -4.000 ± 0.000 (n=30)" in text


def test_judges_that_cannot_are_told_so():
    class Broken:
        def compare(self, prompts, first, second):
            return [2.0] * len(prompts)

    said = {"a": ["x"], "b": ["y"]}
    with pytest.raises(ValueError, match="something else than 1 probabilities"):
        fight(["p"], said, Broken())
    with pytest.raises(ValueError, match="leave --grade out"):
        grades(["p"], said, Broken())


def test_a_judge_sees_who_said_what():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert as_text(turns) == "User: a\n\nAssistant: b\n\nUser: c" and as_text(turns[:1]) == as_text("a") == "a"


def test_arena_rates_models(tiny_model, pair_rows, post_train, as_lines, tmp_path, capsys):
    happy = as_lines(tmp_path / "t.jsonl", [{"prompt": "q", "completion": " a wonderful, happy day"}] * 8)
    run = post_train("SFT", "InstructionData", {"init_from": str(tiny_model)}, {"train": str(happy)})
    out = tmp_path / "arena.json"
    args = ["arena", str(run), str(tiny_model), "--prompts", str(pair_rows), "--limit", "6", "--max_new_tokens", "8"]
    main([*args, "--grade", "--out", str(out)])
    content = json.loads(out.read_text())
    assert len(content["battles"]) == 6 and len(content["answers"][str(run)]) == 6
    assert content["pairs"][0]["n"] == 6 and "Bradley-Terry" in capsys.readouterr().out
    assert content["command"].startswith("lightning-gpt arena ") and content["judge"] == "lexicon"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompts", "p.jsonl"], "name two or more different models"),
        (["other"], "prompts is not given"),
        (["other", "--prompts", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_bad_input_to_arena(tiny_model, options, words, capsys, clean_process):
    with pytest.raises(SystemExit):
        main(["arena", str(tiny_model), *options])
    assert words in capsys.readouterr().err
