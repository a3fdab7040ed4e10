"""Corpora and the LightningDataModules that feed training from them."""

from lightning_gpt.data.image_text_data import ImageTextData
from lightning_gpt.data.instruction_data import InstructionData
from lightning_gpt.data.labelled_data import LabelledData
from lightning_gpt.data.preference_data import PreferenceData
from lightning_gpt.data.prompt_data import PromptData
from lightning_gpt.data.step_data import StepData
from lightning_gpt.data.token_data import TokenData
from lightning_gpt.data.vision_instruction_data import VisionInstructionData

__all__ = [
    "ImageTextData",
    "InstructionData",
    "LabelledData",
    "PreferenceData",
    "PromptData",
    "StepData",
    "TokenData",
    "VisionInstructionData",
]
