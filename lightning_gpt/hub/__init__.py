"""Model directories, checkpoints and the Hugging Face formats."""

from lightning_gpt.hub.checkpoint import load_checkpoint
from lightning_gpt.hub.huggingface import obstacles
from lightning_gpt.hub.model_directory import load_model, load_tokenizer, save_model
from lightning_gpt.hub.opening import open_model

__all__ = ["load_checkpoint", "load_model", "load_tokenizer", "obstacles", "open_model", "save_model"]
