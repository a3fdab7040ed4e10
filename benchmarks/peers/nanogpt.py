"""nanoGPT's model.py, imported from the user's clone."""

import sys
from pathlib import Path

import torch

from benchmarks.peers.loop import measure_loop
from benchmarks.request import Request


def missing(nanogpt: str | None) -> str | None:
    """Why it cannot run."""
    if nanogpt is None:
        return "nanoGPT is left out: git clone https://github.com/karpathy/nanoGPT and pass --nanogpt DIR"
    if not (Path(nanogpt) / "model.py").is_file():
        return f"nanoGPT is left out: --nanogpt {nanogpt} holds no model.py"
    return None


def measure(request: Request) -> list[float]:
    """Tokens/s of each window."""
    sys.path.insert(0, request.nanogpt)
    from model import GPT, GPTConfig

    shape = request.shape
    torch.manual_seed(1337)
    config = GPTConfig(
        block_size=shape.block_size,
        vocab_size=shape.vocab_size,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        dropout=0.0,
        bias=False,
    )
    network = GPT(config).to(request.device)
    forward = torch.compile(network) if request.compiled else network
    return measure_loop(request, network, lambda inputs, targets: forward(inputs, targets)[1])
