"""Rewards: any callable `(prompts, completions, **columns) -> floats`; these are chosen by class_path."""

from lightning_gpt.rewards.judge import Judge, JudgeReward, open_judge
from lightning_gpt.rewards.lexicon import Lexicon
from lightning_gpt.rewards.model_reward import ModelReward
from lightning_gpt.rewards.protocol import Reward, checked
from lightning_gpt.rewards.table import TableReward
from lightning_gpt.rewards.verifier import LengthPenalty, RegexVerifier, Weighted

__all__ = [
    "Judge",
    "JudgeReward",
    "LengthPenalty",
    "Lexicon",
    "ModelReward",
    "RegexVerifier",
    "Reward",
    "TableReward",
    "Weighted",
    "checked",
    "open_judge",
]
