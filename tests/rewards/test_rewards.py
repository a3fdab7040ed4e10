import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from lightning_gpt.rewards import JudgeReward, LengthPenalty, Lexicon, RegexVerifier, Weighted, checked, open_judge
from lightning_gpt.rewards.judge import ModelJudge, RemoteJudge, RewardJudge


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


class _Biased(BaseHTTPRequestHandler):
    """A judge that likes what is longer, and always the first a little; the second request fails once."""

    seen = 0

    def do_POST(self):
        type(self).seen += 1
        if type(self).seen == 2:
            self.send_error(503)
            return
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        if "Grade the answer" in question:
            said = "Grade: 7.5"
        else:
            first, second = question.split("Answer A:\n")[1].split("\n\nThe better")[0].split("\n\nAnswer B:\n")
            said = "A" if len(first) >= len(second) else "The better one is B."
        body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = HTTPServer(("127.0.0.1", 0), _Biased)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1#judge"
    server.shutdown()


def test_a_remote_judge_is_asked_in_both_orders(server):
    judge = open_judge(server)
    assert isinstance(judge, RemoteJudge)
    # equal lengths: always the first, so both orders cancel
    assert judge.compare(["q"] * 3, ["long answer", "x", "same"], ["short", "longer", "size"]) == [1.0, 0.0, 0.5]
    assert JudgeReward(server)(["q"], ["a"]) == [7.5]


def test_a_model_judges_by_probabilities(tiny_model):
    judge = open_judge(str(tiny_model))
    assert isinstance(judge, ModelJudge)
    prompts, first, second = ["q"] * 5, list("abcde"), list("fghij")
    forth = torch.tensor(judge.compare(prompts, first, second))
    back = torch.tensor(judge.compare(prompts, second, first))
    torch.testing.assert_close(forth + back, torch.ones(5))
    assert all(1 <= grade <= 9 for grade in judge.score(prompts, first))


def test_a_reward_judges_by_difference():
    judge = open_judge("lexicon")
    assert isinstance(judge, RewardJudge)
    better, tie = judge.compare(["", ""], ["wonderful", "table"], ["horrible", "chair"])
    assert better > 0.7 and tie == 0.5
