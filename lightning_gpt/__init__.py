"""lightning_gpt: a GPT through its whole life on one PyTorch Lightning code base."""

__version__ = "0.1.0"
