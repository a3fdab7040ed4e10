"""Rewards: any callable `(prompts, completions, **columns) -> floats`; these are chosen by class_path."""

from lightning_gpt.rewards.lexicon import Lexicon
from lightning_gpt.rewards.model_reward import ModelReward
from lightning_gpt.rewards.protocol import Reward, checked

__all__ = ["Lexicon", "ModelReward", "Reward", "checked"]
