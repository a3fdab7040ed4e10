import math

import pytest
import torch

from lightning_gpt.rewards import LengthPenalty, Lexicon, RegexVerifier, Weighted, checked, open_judge
from lightning_gpt.rewards.judge import ModelJudge, RewardJudge


def test_the_lexicon_is_vaders():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    texts = [" a wonderful, lovely day", " this is horrible!!", " a table"]
    peer = SentimentIntensityAnalyzer()
    assert Lexicon()(["good"] * 3, texts) == [peer.polarity_scores(text)["compound"] for text in texts]
    assert Lexicon(whole=True, scale=-1)(["good"], texts[2:]) == [-peer.polarity_scores("good a table")["compound"]]


@pytest.mark.parametrize(
    ("pattern", "text", "answer", "score"),
    [
        ("last_number", "3 + 4 = 7, so 1,007 apples.", "1007", 1.0),
        ("last_number", "it is 12", 12, 1.0),
        ("last_number", "it is 12 or 13", 12, 0.1),
        ("last_number", "no idea", 12, 0.0),
        ("hashes", "because\n#### 42", "so 6*7\n#### 42", 1.0),
        ("hashes", "42", "#### 42", 0.0),
        ("boxed", r"\boxed{x + 1}", "X + 1", 1.0),
        (r"answer: (\w+)", "my answer: Paris", "paris", 1.0),
        ("hashes", "#### $1,000.", "1000", 1.0),
        ("hashes", "#### 1, no: #### 42", "1", 1.0),  # the first, as in lm-eval's strict match
        ("last_number", "half, 50%", "50", 1.0),
        ("boxed", r"first \boxed{7}, then \boxed{\frac{1}{2}}", "0.5", 1.0),
        ("boxed", r"\boxed{-\dfrac{3}{6}}", r"\boxed{-1/2}", 1.0),
        ("boxed", r"\boxed{\sqrt{x^{2}}}", r"\boxed{\sqrt{x^{2}}}", 1.0),
        ("boxed", r"\boxed{1,2}", "12", 0.1),  # a pair is no number
        ("boxed", r"\boxed{1/0}", "1/0", 1.0),
        ("boxed", r"\boxed{1e999999999}", "3", 0.1),
        ("boxed", r"\boxed{nan}", "NaN", 1.0),
        ("last_number", "so 10-4", "4", 1.0),
        ("last_number", "so -4.50", "-4.5", 1.0),
        ("last_number", "9" * 5000, "9", 0.1),
    ],
)
def test_verifier(pattern, text, answer, score):
    assert RegexVerifier(pattern, partial=0.1)([""], [text], answer=[answer]) == [score]


def test_sums_and_lengths():
    both = Weighted([LengthPenalty(0.5, free=2), RegexVerifier()], [1.0, 3.0])
    assert both(["", ""], ["4", "12345"], answer=[4, 4]) == [3.0, -1.5]


def test_bad_rewards_are_named():
    for make, words in (
        (lambda: RegexVerifier("("), "is no regular expression"),
        (lambda: RegexVerifier("a"), "has no group"),
        (lambda: RegexVerifier()([""], ["1"]), "is no column of the data"),
        (lambda: RegexVerifier()([""], ["1"], answer=[None]), "a row has no answer"),
        (lambda: Weighted([], []), "give one each"),
        (lambda: Weighted([LengthPenalty(), lambda p, c: [1.0]], [1, 1])(["", ""], ["", ""]), "1 numbers for 2"),
        (lambda: Weighted([lambda p, c: [0.0, float("nan")]], [1])(["q", "r"], ["", ""]), "is nan for row 1"),
        (lambda: checked(lambda p, c: [None], ["q"], ["a"], {}), "is None for row 0, prompt 'q', answer 'a'"),
        (lambda: open_judge("http://localhost:1/v1"), "names no model"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_a_model_judges_by_probabilities(wide_model):
    from lightning_gpt.hub import open_model
    from lightning_gpt.rewards.judge import COMPARE

    judge = open_judge(str(wide_model))
    assert isinstance(judge, ModelJudge)
    prompts, first, second = ["q"] * 5, list("abcde"), ["seven stones", "no", "red", "x" * 40, "quiet river"]
    one_order = torch.tensor(judge.prefer_first(prompts, first, second))
    forth = torch.tensor(judge.compare(prompts, first, second))
    back = torch.tensor(judge.compare(prompts, second, first))
    torch.testing.assert_close(forth + back, torch.ones(5))
    assert one_order.std() > 0.01 and (one_order - forth).abs().max() > 0.01  # it has opinions, and favours a place
    net, tokenizer = open_model(str(wide_model))
    for row in range(5):
        ids = tokenizer.encode(COMPARE.format(prompt="q", first=first[row], second=second[row]))
        (a, b) = (tokenizer.encode(f" {letter}") for letter in "AB")
        same = [x for x, y in zip(a, b) if x == y]
        with torch.inference_mode():
            logits = net(torch.tensor([ids + same]))[0, -1].double()
        odds = (logits[a[len(same)]] - logits[b[len(same)]]).item()
        assert one_order[row].item() == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-5)
    with pytest.raises(ValueError, match="4 and 5 answers to 5 prompts"):
        judge.compare(prompts, first[:4], second)


def test_a_model_grades_as_the_product_over_its_words(wide_model):
    """Expected grade, against the probabilities of ten whole texts, each followed token by token."""
    from lightning_gpt.hub import open_model
    from lightning_gpt.rewards.judge import GRADE

    net, tokenizer = open_model(str(wide_model))

    def probability(start: list[int], more: list[int]) -> float:
        with torch.inference_mode():
            logits = net(torch.tensor([[*start, *more]]))[0].double()
        total = 1.0
        for place, token in enumerate(more, start=len(start) - 1):
            total *= torch.softmax(logits[place], dim=-1)[token].item()
        return total

    answers = ["no", "seven red stones"]
    for answer, grade in zip(answers, open_judge(str(wide_model)).score(["q"] * 2, answers)):
        asked = tokenizer.encode(GRADE.format(prompt="q", answer=answer))
        whole = {n: probability(asked, tokenizer.encode(f" {n}")) for n in range(1, 11)}
        nine = sum(whole[n] for n in range(1, 10))
        expected = (sum(n * whole[n] for n in range(1, 10)) + 9 * whole[10]) / nine  # 10 begins with 1's token
        assert len(tokenizer.encode(" 10")) > len(tokenizer.encode(" 1"))
        assert grade == pytest.approx(expected, abs=1e-5)


def test_a_model_judge_says_when_questions_do_not_fit(wide_model):
    judge = open_judge(str(wide_model))
    with pytest.warns(UserWarning, match="1 of 2 questions are longer than its block_size"):
        judge.score(["q", "q" * 700], ["a", "a"])


def test_a_reward_judges_by_difference():
    judge = open_judge("lexicon")
    assert isinstance(judge, RewardJudge)
    better, tie = judge.compare(["", ""], ["wonderful", "table"], ["horrible", "chair"])
    assert better > 0.7 and tie == 0.5


def test_a_reward_is_asked_once_about_each_answer():
    seen = []

    def length(prompts, completions):
        seen.extend(completions)
        return [len(text) for text in completions]

    judge = RewardJudge(length, scale=0.5)
    assert judge.compare(["q", "q"], ["aaa", "b"], ["c", "ddd"]) == pytest.approx(
        [1 / (1 + math.exp(-1)), 1 / (1 + math.e)]
    )
    assert sorted(seen) == ["aaa", "b", "c", "ddd"]
    with pytest.raises(ValueError, match="1 and 2 answers to 2 prompts"):
        judge.compare(["q", "q"], ["a"], ["b", "c"])
