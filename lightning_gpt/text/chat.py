"""Conversations as tokens: a Jinja chat template, and which tokens the assistant says, marked as they are made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lightning_gpt.text.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""{"role": "user", "content": "..."}; further keys are for the template."""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The format of OpenAI's ChatML, Qwen and SmolLM2; its two tokens must be in the vocabulary."""
PLAIN = (
    "{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
"""For tokenizers without tokens for turns: `User: ...`, `Assistant: ...<|endoftext|>`, a line each."""
TEMPLATES = {"chatml": CHATML, "plain": PLAIN}

_GENERATION_TAGS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


@dataclass(frozen=True)
class MarkedTokens:
    """Token ids, and for each whether the assistant says it."""

    ids: list[int]
    spoken: list[bool]


class ChatTemplate:
    """Writes messages in the form a model was, or will be, trained on.

    Args:
        tokenizer: of the model.
        template: Jinja source in transformers' form, "chatml", "plain"; None = the model's own, else ChatML when the
            vocabulary has its tokens, else plain.
        image_token: special token that stands for a picture where a user's message has its text, such as <image>;
            elsewhere, and without it, that text is ordinary.

    Raises:
        ValueError: not a template, ChatML without its tokens, or jinja2 is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None, image_token: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.image_token = image_token
        special = tokenizer.special_tokens
        if template is None:
            template = tokenizer.roles.chat_template or ("chatml" if "<|im_end|>" in special else "plain")
        if template == "chatml" and not {"<|im_start|>", "<|im_end|>"} <= special.keys():
            raise ValueError(
                "chat_template=chatml needs the tokens <|im_start|> and <|im_end|>, which this tokenizer lacks: use "
                "plain"
            )
        self.source = TEMPLATES.get(template, template)
        if "{" not in self.source:
            raise ValueError(
                f"chat_template={template!r} is no Jinja template: use {', '.join(TEMPLATES)} or the source"
            )

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a turn: the tokenizer's, and ChatML's where the template writes it."""
        end = self.tokenizer.special_tokens.get("<|im_end|>")
        return self.tokenizer.end_ids | ({end} if end is not None and "<|im_end|>" in self.source else set())

    @cached_property
    def _compiled(self) -> Any:
        try:
            from jinja2 import TemplateError
            from jinja2.ext import loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise ValueError("chat templates need jinja2: pip install 'lightning_gpt[align]'") from None

        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        names = {index: name for name, index in self.tokenizer.special_tokens.items()}
        for part in ("bos", "eos", "pad"):
            environment.globals[f"{part}_token"] = names.get(getattr(self.tokenizer, f"{part}_id"), "")
        environment.globals["raise_exception"] = raise_exception
        try:
            # transformers marks the assistant's words with these tags, which Jinja does not know; we need none.
            return environment.from_string(_GENERATION_TAGS.sub("", self.source))
        except TemplateError as error:
            raise ValueError(f"the chat template is no valid Jinja: {error}") from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The conversation as text.

        Args:
            messages: in their order.
            add_generation_prompt: end with what opens the assistant's turn.

        Raises:
            ValueError: messages that the template refuses, or without role and content.
        """
        from jinja2 import TemplateError

        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise ValueError(f"a message must have role and content, this is {message!r}")
        if self._takes_parts:
            messages = [{**message, "content": self._in_parts(message)} for message in messages]
        try:
            return self._compiled.render(messages=list(messages), add_generation_prompt=add_generation_prompt)
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses the messages: {error}") from None

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Tokens up to where the assistant begins to speak: what is generated from."""
        return self._encode(self.render(messages, add_generation_prompt=True), messages)

    def encode(self, messages: Sequence[Message]) -> MarkedTokens:
        """Tokens of a conversation, the assistant's marked: its words and the token that ends its turn.

        Every turn is tokenised apart from what stands before it, as it will be when it is generated; what the
        template writes between the end of a turn and the next is not the assistant's.

        Raises:
            ValueError: a template that rewrites earlier turns (a conversation then has no one text to learn from).
        """
        ids: list[int] = []
        spoken: list[bool] = []
        written = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:index], add_generation_prompt=True)
            after = self.render(messages[: index + 1])
            if not before.startswith(written) or not after.startswith(before):
                raise ValueError(
                    f"the chat template does not continue its own text at message {index}: split the conversation "
                    "into one row a turn, or choose another chat_template"
                )
            asked = self._encode(before[len(written) :], messages)
            answer = self._encode(after[len(before) :], messages)
            ends = [place for place, token in enumerate(answer) if token in self.end_ids]
            said = ends[0] + 1 if ends else len(answer)
            ids += asked + answer
            spoken += [False] * len(asked) + [place < said for place in range(len(answer))]
            written = after
        rest = self._encode(self.render(messages)[len(written) :], messages)
        return MarkedTokens(ids + rest, spoken + [False] * len(rest))

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether contents are lists of pictures and texts, as in transformers' templates of vision-language models."""
        if self.image_token is None:
            return False
        try:
            return "words" not in self._compiled.render(messages=[{"role": "user", "content": "words"}])
        except Exception:  # whatever it refuses, it will say of a real message
            return False

    def _in_parts(self, message: Message) -> list[dict[str, str]]:
        texts = self._texts(message)
        pictures = [{"type": "image"}] * (len(texts) - 1)
        return [*pictures, {"type": "text", "text": "".join(texts).strip()}]

    def _texts(self, message: Message) -> list[str]:
        """What stands before, between and after a message's pictures."""
        content = str(message["content"])
        shown = self.image_token is not None and message.get("role") == "user"
        return content.split(self.image_token) if shown else [content]

    def _encode(self, text: str, messages: Sequence[Message]) -> list[int]:
        """Special tokens count where the template writes them, not where a message pretends to."""
        special, contents = self.tokenizer.special_tokens, {own for one in messages for own in self._texts(one)}
        forging = [content for content in contents if any(name in content for name in special)]
        if not forging:
            return self.tokenizer.encode(text, allow_special=True)
        pieces = re.split("(" + "|".join(map(re.escape, sorted(forging, key=len, reverse=True))) + ")", text)
        return [
            token
            for place, piece in enumerate(pieces)
            for token in self.tokenizer.encode(piece, allow_special=place % 2 == 0)
        ]
