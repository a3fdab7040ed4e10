"""Our network in the bare loop: what is left for the Trainer to lose."""

from collections.abc import Callable

import torch

from benchmarks.peers.loop import LossFunction, measure_loop, training_step
from benchmarks.request import Request, Shape
from lightning_gpt.cli.allocator import keep_freed_memory
from lightning_gpt.nn import GPT, GPTConfig


def missing(nanogpt: str | None) -> str | None:
    """Never."""
    return None


def model_fields(shape: Shape) -> dict[str, object]:
    """GPTConfig's fields for nanoGPT's network of this shape: no biases, exact GELU, tied head."""
    return {
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_embd": shape.n_embd,
        "bias": False,
        "feed_forward": "gelu",
    }


def model_config(shape: Shape) -> GPTConfig:
    """The network."""
    return GPTConfig(vocab_size=shape.vocab_size, block_size=shape.block_size, **model_fields(shape))


def build(request: Request) -> GPT:
    """The network, and the allocator of the command line."""
    keep_freed_memory()
    torch.manual_seed(1337)
    return GPT(model_config(request.shape)).to(request.device)


def bare_step(request: Request) -> Callable[[], torch.Tensor]:
    """One step of the network outside any Trainer."""
    network = build(request)
    return training_step(request, network, mean_loss(request, network))


def mean_loss(request: Request, network: GPT) -> LossFunction:
    """The network's mean loss, compiled where asked for."""
    loss_function = torch.compile(network.loss) if request.compiled else network.loss

    def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return loss_function(inputs, targets)[0] / targets.numel()

    return loss_of


def measure(request: Request) -> list[float]:
    """Tokens/s of each window."""
    network = build(request)
    return measure_loop(request, network, mean_loss(request, network))
