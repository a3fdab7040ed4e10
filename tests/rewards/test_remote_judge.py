import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lightning_gpt.rewards import JudgeReward, open_judge
from lightning_gpt.rewards.judge import RemoteJudge
from lightning_gpt.rewards.verdict import preference, spoken_grade


class Address:
    """A server in OpenAI's form; `answer(question, body)` gives what it says, (status, content, headers) or a text."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.headers: list[dict] = []
        self.answer = lambda question, body: "A"
        address = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                address.asked.append(body)
                address.headers.append(dict(self.headers))
                said = address.answer(body["messages"][0]["content"], body)
                if isinstance(said, str | None):
                    said = {"message": {"content": said}}
                status, content, headers = said if isinstance(said, tuple) else (200, {"choices": [said]}, {})
                sent = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": len(sent), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.name = f"http://127.0.0.1:{self.server.server_port}/v1#judge"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def address():
    address = Address()
    yield address
    address.server.shutdown()
    address.server.server_close()


@pytest.fixture
def no_waiting(monkeypatch):
    """Seconds that were waited, without waiting."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def answers_in(question: str) -> tuple[str, str]:
    first, second = question.split("Answer A:\n")[1].split("\n\nThe better")[0].split("\n\nAnswer B:\n")
    return first, second


def with_logprobs(letter: str, a: float, b: float) -> dict:
    tops = [{"token": " A", "logprob": math.log(a)}, {"token": " B", "logprob": math.log(b)}]
    tokens = [{"token": "Answer", "logprob": 0.0, "top_logprobs": []}]
    tokens += [{"token": f" {letter}", "logprob": math.log(max(a, b)), "top_logprobs": tops}]
    return {"message": {"content": f"Answer {letter}"}, "logprobs": {"content": tokens}}


def test_both_orders_cancel_a_liking_for_the_first(address):
    def longer(question, body):
        first, second = answers_in(question)
        return "A" if len(first) >= len(second) else "The better one is B."

    address.answer = longer
    judge = open_judge(address.name)
    assert isinstance(judge, RemoteJudge)
    assert judge.prefer_first(["q"], ["same"], ["size"]) == [1.0]
    assert judge.compare(["q"] * 3, ["long answer", "x", "same"], ["short", "longer", "size"]) == [1.0, 0.0, 0.5]


def test_log_probabilities_are_read_where_they_are_told(address):
    def biased(question, body):
        """The odds of the first are those of its length, times three for being first."""
        first, second = answers_in(question)
        odds = 3 * len(first) / len(second)
        a, b = 0.8 * odds / (1 + odds), 0.8 / (1 + odds)  # a fifth is for other words
        return with_logprobs("A" if a > b else "B", a, b)

    address.answer = biased
    judge = open_judge(address.name)
    assert judge.prefer_first(["q"], ["aaaa"], ["bb"]) == pytest.approx([6 / 7])
    assert judge.compare(["q"] * 2, ["aaaa", "aa"], ["bb", "bb"]) == pytest.approx([(6 / 7 + 0.4) / 2, 0.5])
    assert all(body["logprobs"] for body in address.asked)


def test_an_address_that_refuses_log_probabilities_is_asked_without(address):
    refusal = (400, {"error": {"message": "logprobs is not supported"}}, {})
    address.answer = lambda question, body: refusal if "logprobs" in body else "B"
    judge = open_judge(address.name)
    assert judge.prefer_first(["q"] * 2, ["a"] * 2, ["b"] * 2) == [0.0, 0.0]
    assert ["logprobs" in body for body in address.asked] == [True, False, False]


def test_a_busy_address_is_asked_again(address, no_waiting, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    busy = iter([(503, b"busy", {}), (429, b"slow down", {"Retry-After": "7"}), (200, b"{", {"Content-Length": 9})])
    address.answer = lambda question, body: next(busy, "Grade: 7.5")
    assert JudgeReward(address.name)(["q"], ["a"]) == [7.5]
    assert no_waiting == [1.0, 7.0, 4.0]
    assert address.headers[-1]["Authorization"] == "Bearer a-key"


def test_what_an_address_cannot_do_is_told(address, no_waiting):
    unknown = (404, {"error": {"message": "The model `judge` does not exist"}}, {})
    thinking = {"message": {"content": ""}, "finish_reason": "length"}
    for said, kind, words in (
        (unknown, OSError, "404 Not Found: The model `judge` does not exist"),
        ((200, b"<html>", {}), ValueError, "does not answer in the OpenAI form"),
        (thinking, ValueError, "thinks before it speaks"),
        ("I would rather not.", ValueError, "gave no grade but 'I would rather not.'"),
        (None, ValueError, "gave no grade"),
        ((500, b"", {}), OSError, "does not answer after 5 attempts: 500"),
    ):
        address.answer = lambda question, body, said=said: said
        with pytest.raises(kind, match=words):
            open_judge(address.name).score(["q"], ["a"])
    address.answer = lambda question, body: None  # refused to judge: no opinion
    assert open_judge(address.name).compare(["q"], ["a"], ["b"]) == [0.5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", 1.0),
        ("**B**", 0.0),
        ("[[B]]", 0.0),
        ("A better answer is B.", 0.0),
        ("The better answer is (A or B): B", 0.0),
        ("Answer B is better than Answer A.", 0.0),
        ("A is more helpful than B.", 1.0),
        ("I think B", 0.0),
        ("I think A.", 1.0),
        ("A good question!", 0.5),
        ("Answer A is worse than B.", 0.5),
        ("Neither A nor B", 0.5),
        ("", 0.5),
    ],
)
def test_verdicts(text, expected):
    assert preference({"text": text}) == expected


@pytest.mark.parametrize(
    ("text", "grade"),
    [("7", 7.0), ("Grade: 7.5", 7.5), ("From 1 to 10 I say 6", 6.0), ("8 out of 10", 8.0), ("[[3]] of 10", 3.0)],
)
def test_grades(text, grade):
    assert spoken_grade(text) == grade
