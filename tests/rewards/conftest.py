from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def wide_model(tiny_model, tmp_path_factory) -> Path:
    """A network with the tiny model's tokenizer that can hold a judge's whole question; not trained, of strong
    opinions."""
    from lightning_gpt.hub import load_tokenizer, save_model
    from lightning_gpt.nn import GPT, GPTConfig

    torch.manual_seed(3)
    tokenizer = load_tokenizer(tiny_model)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=640, vocab_size=tokenizer.vocab_size, init_std=0.4)
    directory = tmp_path_factory.mktemp("wide") / "model"
    save_model(directory, GPT(config).eval(), tokenizer)
    return directory
