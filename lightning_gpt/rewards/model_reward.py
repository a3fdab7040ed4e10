"""A trained reward model as a reward: outcome or process, whatever the directory holds."""

from functools import cached_property
from typing import Any

import torch

from lightning_gpt.hub.reward_directory import RewardScale, load_reward_model
from lightning_gpt.nn import GPT
from lightning_gpt.nn.heads import ScalarHead
from lightning_gpt.objectives.process import Aggregate, solution_scores
from lightning_gpt.text.chat import ChatTemplate
from lightning_gpt.text.tokenizer import Tokenizer

NO_STEPS = -20.0
"""Score of an answer without a single step: no wrong step would else be the best that a solution can have."""


class ModelReward:
    """Scores answers with a reward model; of a process reward model the steps' log-probabilities are put together.

    A model that learnt from conversations scores in its own chat template: the column `prompt_messages` where the
    data have conversations, else the prompt as a user's message.

    Args:
        path: reward model's directory, run or checkpoint.
        batch_size: answers per forward pass.
        normalize: subtract the mean and divide by the deviation of the reward model's validation answers.
        aggregate: how the steps of a process reward model become one number.
        device: auto, cpu, cuda, ...
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 32,
        normalize: bool = True,
        aggregate: Aggregate = "product",
        device: str = "auto",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"reward.batch_size={batch_size} must be at least 1")
        self.path, self.batch_size, self.normalize, self.aggregate = path, batch_size, normalize, aggregate
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device

    @cached_property
    def _model(self) -> tuple[GPT, ScalarHead, Tokenizer, RewardScale]:
        return load_reward_model(self.path, self.device)

    @torch.inference_mode()
    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """Rewards, in the order of the answers."""
        net, _, _, scale = self._model
        limit = net.config.block_size
        if scale.kind == "process":
            rows = [self._steps(prompt, answer, limit) for prompt, answer in zip(prompts, completions)]
        else:
            talks = columns.get("prompt_messages") or [None] * len(prompts)
            rows = [
                (self._whole(prompt, answer, talk)[-limit:], [])
                for prompt, answer, talk in zip(prompts, completions, talks)
            ]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self.batch_size):
            some = order[start : start + self.batch_size]
            for row, score in zip(some, self._score([rows[row] for row in some])):
                scores[row] = score
        return scores

    def _whole(self, prompt: str, answer: str, talk: list[dict[str, Any]] | None) -> list[int]:
        """Prompt and answer with its end, in the form that the model has learnt from."""
        _, _, tokenizer, scale = self._model
        if not scale.chat:
            end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
            return [*tokenizer.prefix_ids, *tokenizer.encode(prompt), *tokenizer.encode(answer), *end]
        talk = talk or [{"role": "user", "content": prompt}]
        marked = ChatTemplate(tokenizer).encode([*talk, {"role": "assistant", "content": answer}])
        last = max(place for place, spoken in enumerate(marked.spoken) if spoken)
        return marked.ids[: last + 1]

    def _steps(self, prompt: str, answer: str, limit: int) -> tuple[list[int], list[int]]:
        """Ids and the places where steps end; an answer without the mark is one step."""
        _, _, tokenizer, scale = self._model
        ids, ends = [*tokenizer.prefix_ids, *tokenizer.encode(prompt)], []
        mark = tokenizer.encode(scale.step_end)
        for step in [step for step in answer.split(scale.step_end) if step.strip()]:
            ids += tokenizer.encode(step) + mark
            ends.append(len(ids) - 1)
        gone = max(len(ids) - limit, 0)
        return ids[gone:], [end - gone for end in ends if end >= gone]

    def _score(self, rows: list[tuple[list[int], list[int]]]) -> list[float]:
        net, head, _, scale = self._model
        longest = max(len(ids) for ids, _ in rows)
        ids_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows], device=self.device)
        numbers_BT = head(net.hidden(ids_BT))
        if scale.kind == "process":
            ends_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
            for row, (_, ends) in enumerate(rows):
                ends_BT[row, ends] = True
            scores_B = solution_scores(numbers_BT, ends_BT, self.aggregate)
            return torch.where(ends_BT.any(-1), scores_B, NO_STEPS).tolist()
        last_B = torch.tensor([len(ids) - 1 for ids, _ in rows], device=self.device)
        scores_B = numbers_BT[torch.arange(len(rows), device=self.device), last_B]
        return ((scores_B - scale.mean) / scale.deviation if self.normalize else scores_B).tolist()
