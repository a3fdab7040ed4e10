"""Sampling and generation."""

from lightning_gpt.inference.generation import Generation, generate, row_generators
from lightning_gpt.inference.sampling import SamplingConfig, sample
from lightning_gpt.inference.text_generation import TextPiece, generate_text

__all__ = ["Generation", "SamplingConfig", "TextPiece", "generate", "generate_text", "row_generators", "sample"]
