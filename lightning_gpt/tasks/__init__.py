"""LightningModules, one per topic."""

from lightning_gpt.tasks.base import NonFiniteError, Task
from lightning_gpt.tasks.clip import CLIP
from lightning_gpt.tasks.dpo import DPO
from lightning_gpt.tasks.grpo import GRPO, RLOO
from lightning_gpt.tasks.kto import KTO
from lightning_gpt.tasks.llava import LLaVA
from lightning_gpt.tasks.online_dpo import OnlineDPO
from lightning_gpt.tasks.ppo import PPO
from lightning_gpt.tasks.pretraining import Pretraining
from lightning_gpt.tasks.process_reward import ProcessRewardModel
from lightning_gpt.tasks.reward_model import RewardModel
from lightning_gpt.tasks.sft import SFT

__all__ = [
    "CLIP",
    "DPO",
    "GRPO",
    "KTO",
    "PPO",
    "RLOO",
    "SFT",
    "LLaVA",
    "NonFiniteError",
    "OnlineDPO",
    "Pretraining",
    "ProcessRewardModel",
    "RewardModel",
    "Task",
]
