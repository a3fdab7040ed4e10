import pytest
import torch

from lightning_gpt.nn import GPT
from lightning_gpt.text.byte import byte_tokenizer
from lightning_gpt.text.char import char_tokenizer


@pytest.fixture
def tokenizer():
    return byte_tokenizer(end_of_text=True)


@pytest.fixture
def character_tokenizer():
    return char_tokenizer("abcdefghijklmnopqrstuvwxyz \nABC.,!'é")


@pytest.fixture
def make_network():
    """A network whose every parameter is random, also gains and biases that start trivial."""

    def make(config, seed: int = 0):
        torch.manual_seed(seed)
        net = GPT(config).eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return net

    return make
