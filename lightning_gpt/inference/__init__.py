"""Sampling, generation and the batching engine."""

from lightning_gpt.inference.async_engine import AsyncEngine, EngineStoppedError
from lightning_gpt.inference.engine import Engine
from lightning_gpt.inference.engine_config import EngineConfig, EngineStats
from lightning_gpt.inference.generation import Generation, generate, row_generators
from lightning_gpt.inference.request import Completion, Output, Request, TokenLogprob
from lightning_gpt.inference.runners import make_runner
from lightning_gpt.inference.sampling import SamplingConfig, sample
from lightning_gpt.inference.scheduler import QueueFullError
from lightning_gpt.inference.text_generation import TextPiece, generate_text

__all__ = [
    "AsyncEngine",
    "Completion",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "EngineStoppedError",
    "Generation",
    "Output",
    "QueueFullError",
    "Request",
    "SamplingConfig",
    "TextPiece",
    "TokenLogprob",
    "generate",
    "generate_text",
    "make_runner",
    "row_generators",
    "sample",
]
