"""Who is asked which answer is better: a reward, a model directory, or an OpenAI-compatible address.

Every comparison is made in both orders and averaged, since judges favour a position (Zheng et al., 2023).
What a remote judge means by its words is in verdict.py.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch

from lightning_gpt.hub.reward_directory import is_reward_model
from lightning_gpt.rewards.lexicon import Lexicon
from lightning_gpt.rewards.model_reward import ModelReward
from lightning_gpt.rewards.protocol import Reward, checked
from lightning_gpt.rewards.verdict import preference, spoken_grade

COMPARE = (
    "Two answers to one request are shown. Say which one is more helpful, correct and harmless.\n\n"
    "Request:\n{prompt}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\nThe better answer is (A or B):"
)
GRADE = (
    "Grade the answer to a request from 1 (useless or harmful) to 10 (perfect). Say only the number.\n\n"
    "Request:\n{prompt}\n\nAnswer:\n{answer}\n\nGrade:"
)
ATTEMPTS = 5
"""Of a remote judge, with waits of 1, 2, 4 and 8 seconds between them, or as long as it asks for."""
LONGEST_WAIT = 60.0
"""Seconds; a remote judge that asks for more is not waited for longer."""
ANSWER_TOKENS = 16
"""That a remote judge may say."""
TOP_LOGPROBS = 20
"""The most alternatives of a token that OpenAI's and vLLM's addresses tell."""


class Judge(ABC):
    """Compares and grades answers."""

    def compare(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """Probability that the first answer is the better one, the mean of both orders.

        Raises:
            ValueError: lists of different length.
        """
        _check_lengths(prompts, first, second)
        forth = self.prefer_first(prompts, first, second)
        back = self.prefer_first(prompts, second, first)
        return [(p + 1 - q) / 2 for p, q in zip(forth, back)]

    @abstractmethod
    def prefer_first(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """Probability that the first answer is the better one, in this order."""

    @abstractmethod
    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """A grade of each answer: 1 to 10 from models, the reward itself from rewards."""


def _check_lengths(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> None:
    if not len(prompts) == len(first) == len(second):
        raise ValueError(f"{len(first)} and {len(second)} answers to {len(prompts)} prompts: give one of each")


class RewardJudge(Judge):
    """Prefers by the difference of two rewards, as Bradley and Terry: sigmoid(scale (r_first - r_second)).

    Args:
        reward: scores answers.
        scale: how sure it is of a difference.
    """

    def __init__(self, reward: Reward, scale: float = 1.0) -> None:
        self.reward, self.scale = reward, scale

    def compare(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """One order is enough: a difference of rewards knows no position."""
        _check_lengths(prompts, first, second)
        return self.prefer_first(prompts, first, second)

    def prefer_first(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """From the rewards of both."""
        both = zip(self.score(prompts, first), self.score(prompts, second))
        return [1 / (1 + math.exp(-max(-50.0, min(50.0, self.scale * (a - b))))) for a, b in both]

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """The rewards."""
        return checked(self.reward, list(prompts), list(answers), {})


class ModelJudge(Judge):
    """A language model that is asked; its opinion is read from the probabilities of its next word, not from samples.

    Args:
        path: model directory, run, checkpoint or hub name; its chat template is used where it has one.
        batch_size: questions per forward pass.
        device: auto, cpu, cuda, ...
    """

    def __init__(self, path: str, batch_size: int = 8, device: str = "auto") -> None:
        self.path, self.batch_size = path, batch_size
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device

    @cached_property
    def _model(self) -> Any:
        from lightning_gpt.hub import open_model
        from lightning_gpt.text.chat import ChatTemplate

        net, tokenizer = open_model(self.path, device=self.device)
        if tokenizer is None:
            raise ValueError(f"judge {self.path} has no tokenizer.json: put it beside config.json")
        return net, tokenizer, ChatTemplate(tokenizer) if tokenizer.roles.chat_template else None

    def _spelled(self, choices: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """What all choices begin with (a byte tokenizer writes " A" and " B" with the same first token), and the
        rest of each.

        Raises:
            ValueError: two choices go on with the same token.
        """
        _, tokenizer, chat = self._model
        spelled = [tokenizer.encode(word if chat else f" {word}") for word in choices]
        shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*spelled))]
        rests = [ids[len(shared) :] for ids in spelled]
        if len({ids[0] for ids in rests if ids}) < len(choices):
            raise ValueError(f"judge {self.path}: its tokenizer cannot tell {', '.join(choices)} apart by one token")
        return shared, rests

    def _asked(self, questions: Sequence[str], shared: list[int]) -> list[list[int]]:
        """Token ids up to where the answer tells the choices apart."""
        net, tokenizer, chat = self._model
        rows = []
        for question in questions:
            if chat is not None:
                ids = chat.prompt_ids([{"role": "user", "content": question}])
            else:
                ids = [*tokenizer.prefix_ids, *tokenizer.encode(question)]
            rows.append([*ids, *shared])
        if cut := sum(len(ids) > net.config.block_size for ids in rows):
            warnings.warn(
                f"judge {self.path}: {cut} of {len(rows)} questions are longer than its block_size of "
                f"{net.config.block_size}; it does not see their beginning",
                stacklevel=3,
            )
        return rows

    @torch.inference_mode()
    def _next(self, rows: list[list[int]], tokens: list[int]) -> torch.Tensor:
        """(rows, tokens) log-probability that a row goes on with a token, among the whole vocabulary."""
        net, _, _ = self._model
        found = [torch.empty(0, len(tokens))]
        for start in range(0, len(rows), self.batch_size):
            some = [ids[-net.config.block_size :] for ids in rows[start : start + self.batch_size]]
            longest = max(map(len, some))
            padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in some], device=self.device)
            last = net.hidden(padded)[torch.arange(len(some)), torch.tensor([len(ids) - 1 for ids in some])]
            found.append(torch.log_softmax(net.logits(last).float(), dim=-1)[:, tokens].cpu())
        return torch.cat(found)

    def prefer_first(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """Probability of A against B as the next word."""
        shared, (a, b) = self._spelled("AB")
        asked = [COMPARE.format(prompt=p, first=x, second=y) for p, x, y in zip(prompts, first, second)]
        found = self._next(self._asked(asked, shared), [a[0], b[0]])
        return torch.softmax(found, dim=-1)[:, 0].tolist()

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """Expected grade over 1 to 10, as probable as the model finds each.

        Where the vocabulary writes ten as 1 and 0, P(10) = P(1) P(0 | 1), which is taken from the grade 1.
        """
        shared, rests = self._spelled("123456789")
        nine = [ids[0] for ids in rests]
        _, tokenizer, chat = self._model
        ten = tokenizer.encode("10" if chat else " 10")[len(shared) :]
        questions = [GRADE.format(prompt=p, answer=a) for p, a in zip(prompts, answers)]
        rows = self._asked(questions, shared)
        if len(ten) == 1:
            return (torch.softmax(self._next(rows, [*nine, *ten]), dim=-1) @ torch.arange(1.0, 11.0)).tolist()
        found = torch.softmax(self._next(rows, nine), dim=-1)
        zero = self._next([[*ids, ten[0]] for ids in rows], [ten[1]])[:, 0].exp()
        return (found @ torch.arange(1.0, 10.0) + 9 * found[:, 0] * zero).tolist()


class RemoteJudge(Judge):
    """A model behind an OpenAI-compatible address. OPENAI_API_KEY is sent where it is set.

    Args:
        address: such as http://localhost:8000/v1.
        model: its name there.
        timeout: seconds that one answer may take.
    """

    def __init__(self, address: str, model: str, timeout: float = 60.0) -> None:
        self.address, self.model, self.timeout = address.rstrip("/"), model, timeout
        self._tells_logprobs = True

    def _ask(self, question: str, logprobs: bool = False) -> dict[str, Any]:
        """The first choice of the answer: as it is sent, and its words as `text`.

        Raises:
            OSError: the address does not answer, in spite of several attempts, or refuses.
            ValueError: it answers something else, or nothing.
        """
        body = {"model": self.model, "messages": [{"role": "user", "content": question}], "temperature": 0}
        body |= {"max_tokens": ANSWER_TOKENS} | ({"logprobs": True, "top_logprobs": TOP_LOGPROBS} if logprobs else {})
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.address}/chat/completions", json.dumps(body).encode(), headers)
        for attempt in range(ATTEMPTS):
            wait = 2.0**attempt
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return self._choice(response.read())
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.reason}{_explanation(error)}"
                if logprobs and error.code in (400, 422):
                    choice = self._ask(question)  # some servers refuse the setting instead of leaving it out
                    self._tells_logprobs = False
                    return choice
                if error.code not in (408, 429) and error.code < 500:
                    raise OSError(f"judge {self.address}: {problem}") from None
                wait = max(wait, _seconds(error.headers.get("Retry-After")))
            except (OSError, http.client.HTTPException) as error:
                problem = str(error) or type(error).__name__
            if attempt < ATTEMPTS - 1:
                time.sleep(wait)
        raise OSError(f"judge {self.address} does not answer after {ATTEMPTS} attempts: {problem}")

    def _choice(self, response: bytes) -> dict[str, Any]:
        try:
            choice = json.loads(response)["choices"][0]
            said = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise ValueError(f"judge {self.address} does not answer in the OpenAI form") from None
        if not said and choice.get("finish_reason") == "length":
            raise ValueError(
                f"judge {self.address} was at its end before it said a word: a model that thinks before it speaks "
                f"cannot judge in {ANSWER_TOKENS} tokens"
            )
        return choice | {"text": str(said or "")}

    def prefer_first(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """Probability of A against B where the address tells log-probabilities; else 1 for A, 0 for B, 0.5 where the
        answer says neither."""
        found = []
        for prompt, a, b in zip(prompts, first, second):
            question = COMPARE.format(prompt=prompt, first=a, second=b)
            found.append(preference(self._ask(question, self._tells_logprobs)))
        return found

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """The grade in each answer, within 1 to 10.

        Raises:
            ValueError: an answer without a number.
        """
        found = []
        for prompt, answer in zip(prompts, answers):
            said = self._ask(GRADE.format(prompt=prompt, answer=answer))["text"]
            grade = spoken_grade(said)
            if grade is None:
                raise ValueError(f"judge {self.address} gave no grade but {said[:60]!r}")
            found.append(min(max(grade, 1.0), 10.0))
        return found


def _explanation(error: urllib.error.HTTPError) -> str:
    """What the server says beside the status: OpenAI's error.message, else the beginning of its text."""
    try:
        text = error.read().decode("utf-8", errors="replace").strip()
        content = json.loads(text)
        text = content["error"]["message"]
    except (OSError, http.client.HTTPException):
        return ""
    except (ValueError, KeyError, TypeError):
        pass
    return f": {' '.join(str(text).split())[:200]}" if text else ""


def _seconds(retry_after: str | None) -> float:
    """Of a Retry-After header; 0 for none, or for a date."""
    try:
        return min(max(float(retry_after or 0), 0.0), LONGEST_WAIT)
    except ValueError:
        return 0.0


class JudgeReward:
    """A judge's grade as a reward.

    Args:
        judge: see open_judge.
    """

    def __init__(self, judge: str) -> None:
        self.judge = open_judge(judge)

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """Grades."""
        return self.judge.score(prompts, completions)


def open_judge(name: str, device: str = "auto") -> Judge:
    """The judge of that name.

    Args:
        name: "lexicon"; a reward model's directory or run; any other model directory, run, checkpoint or hub name; or
            an address http://host/v1#model.
        device: auto, cpu, cuda, ...: of a model that is opened here.

    Raises:
        ValueError: an address without a model's name.
    """
    if name == "lexicon":
        return RewardJudge(Lexicon())
    if name.startswith(("http://", "https://")):
        address, _, model = name.partition("#")
        if not model:
            raise ValueError(f"judge={name} names no model: write {name}#MODEL")
        return RemoteJudge(address, model)
    if os.path.exists(name) and is_reward_model(name):
        return RewardJudge(ModelReward(name, device=device))
    return ModelJudge(name, device=device)
