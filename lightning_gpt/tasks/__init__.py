"""LightningModules, one per topic."""

from lightning_gpt.tasks.base import NonFiniteError, Task
from lightning_gpt.tasks.pretraining import Pretraining
from lightning_gpt.tasks.sft import SFT

__all__ = ["SFT", "NonFiniteError", "Pretraining", "Task"]
