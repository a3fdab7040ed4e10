"""A conversation with a chat model: its turns and pictures, kept within the context. Legend: T tokens, P patches,
C width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_gpt.inference.engine import Engine
from lightning_gpt.inference.engine_config import EngineConfig
from lightning_gpt.inference.request import Request
from lightning_gpt.inference.runners import make_runner
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.nn import GPT
from lightning_gpt.nn.vision_language import VisionLanguageModel, expand_image_tokens
from lightning_gpt.text.chat import PLAIN, ChatTemplate

ROOM = 4
"""At least this part of the context (or max_new_tokens, if that is less) is kept free for an answer."""


@dataclass(frozen=True)
class Turn:
    """Who says what; pictures are shown before the words."""

    role: str
    content: str
    pictures: int = 0


class Conversation:
    """Asks and remembers. What was said is not read again with every question, nor is a picture.

    Args:
        net: the network, in evaluation mode; its weights stay as they are.
        template: of its conversations, with the token for pictures if it is shown any.
        vision: the model that `net` is part of, if it can be shown pictures.
        system: what the conversation begins with, never forgotten.
        max_new_tokens: of an answer; less where the context ends before.
        sampling: how tokens are drawn; None = always the likeliest.
        stop: an answer ends before any of these strings.
        seed: answer n draws from seed + n.
    """

    def __init__(
        self,
        net: GPT,
        template: ChatTemplate,
        vision: VisionLanguageModel | None = None,
        system: str | None = None,
        max_new_tokens: int = 256,
        sampling: SamplingConfig | None = None,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
        self.net, self.template, self.vision = net, template, vision
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling or SamplingConfig(temperature=0.0)
        # Models that have no token for the end of a turn go on with the user's.
        self.stop = [*stop, *(["\nUser:"] if template.source == PLAIN else [])]
        self.seed = seed
        self._system = [] if system is None else [Turn("system", system)]
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the system's message."""
        self.turns: list[Turn] = []
        """Users and assistants in their order."""
        self.forgotten = 0
        """Questions, with their answers, that the last question left no room for."""
        self._features: list[Tensor] = []  # (P, C) of each picture, in the order of the turns
        self._shown: list[Tensor] = []
        self._answers = 0
        self._engine: Engine | None = None

    @torch.no_grad()
    def show(self, pixels_1CHW: Tensor) -> None:
        """Adds a picture to the next question.

        Raises:
            ValueError: the model cannot be shown pictures.
        """
        if self.vision is None:
            raise ValueError("this model cannot be shown pictures: use a vision-language model (LLaVA)")
        device = self.net.token_embedding.weight.device
        self._shown.append(self.vision.image_features(pixels_1CHW.to(device))[0])

    def ask(self, text: str) -> Iterator[str]:
        """The answer, piece by piece. What was said of it is remembered even if the reader stops.

        Args:
            text: the question; it may write the token for each picture that was just shown, or leave it out.

        Raises:
            ValueError: it does not fit the context, or speaks of pictures that were not shown; the conversation then
                stays as it was.
        """
        if self.vision is not None:
            text = self._without_image_tokens(text)
        turns = [*self.turns, Turn("user", text, len(self._shown))]
        features = [*self._features, *self._shown]
        ids, turns = self._within_context(turns)
        room = min(self.max_new_tokens, self.net.config.block_size - len(ids) + 1)
        embeds = None
        if self.vision is not None and features:
            embeds = self._embedded(ids, features)
        self.forgotten = (len(self.turns) + 1 - len(turns)) // 2
        request = Request(
            ids,
            room,
            self.sampling,
            self.seed + self._answers,
            self.stop,
            tuple(self.template.end_ids),
            banned_ids=[] if self.vision is None else [self.vision.image_token_id],
            embeds=embeds,
        )
        answer = ""
        self._answers += 1
        try:
            with closing(self._engine_for(request).stream(request)) as outputs:
                for _, output in outputs:
                    answer += output.text
                    if output.text:
                        yield output.text
        finally:
            self.turns, self._features, self._shown = [*turns, Turn("assistant", answer)], features, []

    def _engine_for(self, request: Request) -> Engine:
        """The engine of the turns before, if its cache is large enough."""
        needed, limit = len(request.prompt) + request.max_new_tokens, self.net.config.block_size
        config = EngineConfig(max_running=1)
        blocks = -(-min(2 * needed, limit) // config.block_size)
        if self._engine is None or min(needed, limit) > self._engine.cache.blocks * config.block_size:
            config = replace(config, cache_blocks=blocks)
            self._engine = Engine(make_runner(self.net), self.template.tokenizer, config)
        return self._engine

    def _without_image_tokens(self, text: str) -> str:
        token = self.template.image_token
        named = text.count(token) if token else 0
        if named > len(self._shown):
            raise ValueError(f"the message has {named} {token}, but {len(self._shown)} pictures were shown for it")
        return text.replace(token, "").strip() if named else text

    def _within_context(self, turns: list[Turn]) -> tuple[list[int], list[Turn]]:
        """Ids of the turns, the oldest left out until an answer has room.

        A picture outlives the words about it: it goes on to the next question.
        """
        limit = self.net.config.block_size
        longest = limit - min(self.max_new_tokens, max(limit // ROOM, 1)) + 1
        while True:
            ids = self._ids(turns)
            if len(ids) <= longest:
                return ids, turns
            if len(turns) < 3:
                seen = sum(turn.pictures for turn in turns)
                shown = f" with {seen} pictures" if seen else ""
                raise ValueError(
                    f"the message{shown} takes {len(ids)} tokens, of the model's {limit} at most {longest} leave room "
                    "for an answer: make it shorter"
                )
            asked, _, following, *rest = turns
            pictures = asked.pictures + following.pictures
            turns = [Turn(following.role, following.content, pictures), *rest]

    def _ids(self, turns: list[Turn]) -> list[int]:
        shown = f"{self.template.image_token}\n"
        messages = [
            {"role": turn.role, "content": shown * turn.pictures + turn.content} for turn in [*self._system, *turns]
        ]
        ids = self.template.prompt_ids(messages)
        if self.vision is None:
            return ids
        return expand_image_tokens(ids, self.vision.image_token_id, self.vision.tower.tokens)

    @torch.no_grad()
    def _embedded(self, ids: list[int], features: list[Tensor]) -> Tensor:
        device = self.net.token_embedding.weight.device
        return self.vision.embedded(torch.tensor([ids], device=device), torch.stack(features))[0]
