"""Who is asked which answer is better: a reward, a model directory, or an OpenAI-compatible address.

Every comparison is made in both orders and averaged, since judges favour a position (Zheng et al., 2023).
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch

from lightning_gpt.hub.reward_directory import is_reward_model
from lightning_gpt.rewards.lexicon import Lexicon
from lightning_gpt.rewards.model_reward import ModelReward
from lightning_gpt.rewards.protocol import Reward

COMPARE = (
    "Two answers to one request are shown. Say which one is more helpful, correct and harmless.\n\n"
    "Request:\n{prompt}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\nThe better answer is (A or B):"
)
GRADE = (
    "Grade the answer to a request from 1 (useless or harmful) to 10 (perfect). Say only the number.\n\n"
    "Request:\n{prompt}\n\nAnswer:\n{answer}\n\nGrade:"
)
ATTEMPTS = 5
"""Of a remote judge, with waits of 1, 2, 4 and 8 seconds between them."""


class Judge(ABC):
    """Compares and grades answers."""

    def compare(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """Probability that the first answer is the better one, the mean of both orders."""
        forth = self.prefer_first(prompts, first, second)
        back = self.prefer_first(prompts, second, first)
        return [(p + 1 - q) / 2 for p, q in zip(forth, back)]

    @abstractmethod
    def prefer_first(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """Probability that the first answer is the better one, in this order."""

    @abstractmethod
    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """A grade of each answer: 1 to 10 from models, the reward itself from rewards."""


class RewardJudge(Judge):
    """Prefers by the difference of two rewards, as Bradley and Terry: sigmoid(scale (r_first - r_second)).

    Args:
        reward: scores answers.
        scale: how sure it is of a difference.
    """

    def __init__(self, reward: Reward, scale: float = 1.0) -> None:
        self.reward, self.scale = reward, scale

    def prefer_first(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """From the rewards of both."""
        both = zip(self.score(prompts, first), self.score(prompts, second))
        return [1 / (1 + math.exp(-max(-50.0, min(50.0, self.scale * (a - b))))) for a, b in both]

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """The rewards."""
        return list(self.reward(list(prompts), list(answers)))


class ModelJudge(Judge):
    """A language model that is asked; its opinion is read from the probabilities of its next word, not from samples.

    Args:
        path: model directory, run, checkpoint or hub name; its chat template is used where it has one.
        batch_size: questions per forward pass.
    """

    def __init__(self, path: str, batch_size: int = 8) -> None:
        self.path, self.batch_size = path, batch_size

    @cached_property
    def _model(self) -> Any:
        from lightning_gpt.hub import open_model
        from lightning_gpt.text.chat import ChatTemplate

        net, tokenizer = open_model(self.path)
        if tokenizer is None:
            raise ValueError(f"judge {self.path} has no tokenizer.json: put it beside config.json")
        return net, tokenizer, ChatTemplate(tokenizer) if tokenizer.roles.chat_template else None

    @torch.inference_mode()
    def _choose(self, questions: list[str], choices: Sequence[str]) -> torch.Tensor:
        """Probability of each choice as the next word, (questions, choices), among them."""
        net, tokenizer, chat = self._model
        spelled = [tokenizer.encode(word if chat else f" {word}") for word in choices]
        same = takewhile(lambda column: len(set(column)) == 1, zip(*spelled))
        shared = [column[0] for column in same]  # a byte tokenizer writes " A" and " B" with the same first token
        words = [ids[len(shared)] for ids in spelled if len(ids) > len(shared)]
        if len(set(words)) < len(choices):
            raise ValueError(f"judge {self.path}: its tokenizer cannot tell {', '.join(choices)} apart by one token")
        rows = []
        for question in questions:
            if chat is not None:
                ids = chat.prompt_ids([{"role": "user", "content": question}])
            else:
                ids = [*tokenizer.prefix_ids, *tokenizer.encode(question)]
            rows.append([*ids, *shared][-net.config.block_size :])
        found = []
        for start in range(0, len(rows), self.batch_size):
            some = rows[start : start + self.batch_size]
            longest = max(map(len, some))
            hidden = net.hidden(torch.tensor([ids + [0] * (longest - len(ids)) for ids in some]))
            last = hidden[torch.arange(len(some)), torch.tensor([len(ids) - 1 for ids in some])]
            found.append(torch.softmax(net.logits(last).float()[:, words], dim=-1))
        return torch.cat(found)

    def prefer_first(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """Probability of A against B."""
        asked = [COMPARE.format(prompt=p, first=a, second=b) for p, a, b in zip(prompts, first, second)]
        return self._choose(asked, ("A", "B"))[:, 0].tolist()

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """Expected grade over the digits 1 to 9 (a tenth point is two tokens in most vocabularies)."""
        asked = [GRADE.format(prompt=p, answer=a) for p, a in zip(prompts, answers)]
        grades = torch.arange(1.0, 10.0)
        return (self._choose(asked, "123456789") * grades).sum(-1).tolist()


class RemoteJudge(Judge):
    """A model behind an OpenAI-compatible address. OPENAI_API_KEY is sent where it is set.

    Args:
        address: such as http://localhost:8000/v1.
        model: its name there.
        timeout: seconds that one answer may take.
    """

    def __init__(self, address: str, model: str, timeout: float = 60.0) -> None:
        self.address, self.model, self.timeout = address.rstrip("/"), model, timeout

    def _ask(self, question: str) -> str:
        """The answer's text.

        Raises:
            OSError: the address does not answer, in spite of several attempts.
            ValueError: it answers something else.
        """
        body = {"model": self.model, "messages": [{"role": "user", "content": question}], "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.address}/chat/completions", json.dumps(body | {"max_tokens": 16}).encode(), headers
        )
        for attempt in range(ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.load(response)["choices"][0]["message"]["content"]
            except urllib.error.HTTPError as error:
                if error.code not in (408, 429) and error.code < 500:
                    raise OSError(f"judge {self.address}: {error.code} {error.reason}") from None
                problem: Exception = error
            except (OSError, TimeoutError) as error:
                problem = error
            except (ValueError, KeyError, IndexError, TypeError):
                raise ValueError(f"judge {self.address} does not answer in the OpenAI form") from None
            if attempt < ATTEMPTS - 1:
                time.sleep(2.0**attempt)
        raise OSError(f"judge {self.address} does not answer after {ATTEMPTS} attempts: {problem}")

    def prefer_first(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """1 for A, 0 for B, 0.5 where the answer says neither."""
        found = []
        for prompt, a, b in zip(prompts, first, second):
            said = re.search(r"\b([AB])\b", self._ask(COMPARE.format(prompt=prompt, first=a, second=b)))
            found.append(0.5 if said is None else float(said[1] == "A"))
        return found

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """The first number in each answer, within 1 to 10.

        Raises:
            ValueError: an answer without a number.
        """
        found = []
        for prompt, answer in zip(prompts, answers):
            said = self._ask(GRADE.format(prompt=prompt, answer=answer))
            number = re.search(r"\d+(\.\d+)?", said)
            if number is None:
                raise ValueError(f"judge {self.address} gave no grade but {said[:60]!r}")
            found.append(min(max(float(number[0]), 1.0), 10.0))
        return found


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


def open_judge(name: str) -> Judge:
    """The judge of that name.

    Args:
        name: "lexicon"; a reward model's directory or run; any other model directory, run, checkpoint or hub name; or
            an address http://host/v1#model.

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
        return RewardJudge(ModelReward(name))
    return ModelJudge(name)
