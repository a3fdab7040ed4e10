"""LightningModules, one per topic."""

from lightning_gpt.tasks.base import NonFiniteError, Task
from lightning_gpt.tasks.pretraining import Pretraining

__all__ = ["NonFiniteError", "Pretraining", "Task"]
