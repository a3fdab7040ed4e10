"""Rows of the shapes users know, as tokens; masks are made here, where it is known who says what.

Shapes: `text` | `messages` | `prompt` | `prompt, completion` | `prompt, chosen, rejected (, margin)` | `prompt,
completion, label` | `prompt, completions, labels` (steps). Each value is a string or a list of {role, content}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from lightning_gpt.text.chat import ChatTemplate, MarkedTokens

Turns = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Completed:
    """A prompt and what was answered, as tokens; the answer ends with a token that ends texts."""

    prompt: list[int]
    completion: list[int]


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, the better one first."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    margin: float | None = None
    probability: float | None = None
    """That the chosen answer is the better one, where whoever labelled the pair said so."""


@dataclass(frozen=True)
class Steps:
    """A solution in steps: tokens of each step, and whether it is right."""

    prompt: list[int]
    steps: list[list[int]]
    labels: list[bool]


@dataclass(frozen=True)
class Prompt:
    """What is answered: tokens, the same as text, and the row's other columns for rewards."""

    ids: list[int]
    text: str
    columns: dict[str, Any] = field(default_factory=dict)


class RowEncoder:
    """Makes tokens of rows.

    Args:
        template: of the model's conversations.
        as_chat: take a string prompt for a user's message and a string answer for the assistant's.
    """

    def __init__(self, template: ChatTemplate, as_chat: bool = False) -> None:
        self.template = template
        self.tokenizer = template.tokenizer
        self.as_chat = as_chat

    @property
    def end_id(self) -> int:
        """The token that ends an answer.

        Raises:
            ValueError: the tokenizer has none: nothing could teach the model to stop.
        """
        if self.tokenizer.eos_id is None:
            raise ValueError(
                "the model's tokenizer has no end-of-text token, so no answer could end: use a model whose tokenizer "
                "has one"
            )
        return self.tokenizer.eos_id

    def text(self, row: Mapping[str, Any]) -> MarkedTokens:
        """`text`, `messages` or `prompt, completion` for supervised learning, the answer's tokens marked.

        Raises:
            ValueError: no such shape, an empty answer, no token to learn from.
        """
        if "messages" in row:
            marked = self.template.encode(_turns(row, "messages"))
        elif "prompt" in row and "completion" in row:
            one = self.completed(row)
            marked = MarkedTokens(one.prompt + one.completion, [False] * len(one.prompt) + [True] * len(one.completion))
        elif isinstance(row.get("text"), str):
            ids = [*self.tokenizer.prefix_ids, *self.tokenizer.encode(row["text"]), self.end_id]
            marked = MarkedTokens(ids, [True] * len(ids))
        else:
            raise _unknown(row, "text, messages, or prompt and completion")
        if not any(marked.spoken[1:]):
            raise ValueError("no token is left to learn from: the row has no words of the assistant")
        return marked

    def completed(self, row: Mapping[str, Any], answer: str = "completion") -> Completed:
        """`prompt` and an answer.

        Raises:
            ValueError: a field is missing or of another form, or the answer is empty.
        """
        prompt, completion = self._field(row, "prompt"), self._field(row, answer)
        if not _words(completion).strip():
            raise ValueError(f"{answer} is empty: there is nothing to learn from it, remove the row")
        if isinstance(prompt, str) != isinstance(completion, str):
            raise ValueError(f"prompt and {answer} must both be strings or both be lists of messages")
        if isinstance(prompt, str):
            ids = [*self.tokenizer.prefix_ids, *self.tokenizer.encode(prompt)]
            return Completed(ids or [self.end_id], [*self.tokenizer.encode(completion), self.end_id])
        marked = self.template.encode([*prompt, *completion])
        asked = len(self.template.prompt_ids(prompt))
        said = [place for place, spoken in enumerate(marked.spoken) if spoken and place >= asked]
        if not said:
            raise ValueError(f"{answer} has no words of the assistant")
        return Completed(marked.ids[:asked], marked.ids[asked : said[-1] + 1])

    def pair(self, row: Mapping[str, Any]) -> Pair:
        """`prompt, chosen, rejected`; without `prompt` it is what both begin with (as in HH-RLHF).

        Raises:
            ValueError: a field is missing, an answer is empty, both are the same.
        """
        if "chosen" not in row or "rejected" not in row:
            raise _unknown(row, "prompt, chosen and rejected")
        if "prompt" not in row:
            row = _shared_prompt(row)
        if row["chosen"] == row["rejected"]:
            raise ValueError("chosen and rejected are the same: nothing is preferred, remove the row")
        chosen, rejected = self.completed(row, "chosen"), self.completed(row, "rejected")
        numbers = (None if row.get(name) is None else float(row[name]) for name in ("margin", "probability"))
        return Pair(chosen.prompt, chosen.completion, rejected.completion, *numbers)

    def labelled(self, row: Mapping[str, Any]) -> tuple[Completed, bool]:
        """`prompt, completion, label`: an answer and whether it is wanted."""
        if not isinstance(row.get("label"), bool | int):
            raise _unknown(row, "prompt, completion and label (true or false)")
        return self.completed(row), bool(row["label"])

    def steps(self, row: Mapping[str, Any]) -> Steps:
        """`prompt, completions, labels`: a solution's steps, each right or wrong.

        Raises:
            ValueError: a field is missing, the two lists differ in length, a step is empty.
        """
        steps, labels = row.get("completions"), row.get("labels")
        if not isinstance(row.get("prompt"), str) or not isinstance(steps, list) or not isinstance(labels, list):
            raise _unknown(row, "prompt (a string), completions and labels (lists)")
        if not steps or len(steps) != len(labels):
            raise ValueError(f"completions has {len(steps)} steps and labels {len(labels)}: one label a step is needed")
        if not all(isinstance(step, str) and step.strip() for step in steps):
            raise ValueError("completions has an empty step: remove it and its label")
        ids = [*self.tokenizer.prefix_ids, *self.tokenizer.encode(row["prompt"])]
        return Steps(ids, [self.tokenizer.encode(step) for step in steps], [bool(label) for label in labels])

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        """`prompt`, and whatever else the row has as columns for rewards; of a conversation also its messages."""
        if "prompt" not in row and "chosen" in row and "rejected" in row:
            row = _shared_prompt(row)
        prompt = self._field(row, "prompt")
        columns = {key: value for key, value in row.items() if key != "prompt"}
        if isinstance(prompt, str):
            ids = [*self.tokenizer.prefix_ids, *self.tokenizer.encode(prompt)]
            return Prompt(ids or [self.end_id], prompt, columns)
        return Prompt(self.template.prompt_ids(prompt), _words(prompt), columns | {"prompt_messages": list(prompt)})

    def _field(self, row: Mapping[str, Any], name: str) -> Turns:
        if name not in row:
            raise _unknown(row, name)
        value = row[name]
        if isinstance(value, str):
            role = "user" if name == "prompt" else "assistant"
            return [{"role": role, "content": value}] if self.as_chat else value
        return _turns(row, name)


def _turns(row: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    value = row[name]
    if not isinstance(value, list) or not value or not all(isinstance(turn, Mapping) for turn in value):
        raise ValueError(f"{name} must be a list of messages with role and content, it is {type(value).__name__}")
    return value


def _words(turns: Turns) -> str:
    """The text of a string or of all messages."""
    return turns if isinstance(turns, str) else "\n".join(str(turn.get("content", "")) for turn in turns)


def _shared_prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    """What chosen and rejected begin with becomes the prompt."""
    chosen, rejected = row["chosen"], row["rejected"]
    same = len(list(takewhile(lambda both: both[0] == both[1], zip(chosen, rejected))))
    if isinstance(chosen, str):  # up to the last word that opens an answer: the answers may begin alike
        same = chosen.rfind("Assistant:", 0, same) + len("Assistant:") if "Assistant:" in chosen[:same] else 0
    if not same:
        raise ValueError("the row has no prompt, and chosen and rejected share no beginning that could be one")
    return {**row, "prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}


def _unknown(row: Mapping[str, Any], wanted: str) -> ValueError:
    return ValueError(f"the row has {', '.join(row) or 'no fields'}, wanted is {wanted}")
