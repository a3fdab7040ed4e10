"""Hugging Face transformers' GPT2LMHeadModel."""

from importlib.util import find_spec

import torch

from benchmarks.peers.loop import measure_loop
from benchmarks.request import Request


def missing(nanogpt: str | None) -> str | None:
    """Why it cannot run."""
    return None if find_spec("transformers") else "HF GPT-2 is left out: pip install transformers"


def measure(request: Request) -> list[float]:
    """Tokens/s of each window. The class shifts its labels itself, so they are the inputs."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = request.shape
    torch.manual_seed(1337)
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.block_size,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    network = GPT2LMHeadModel(config).to(request.device)
    forward = torch.compile(network) if request.compiled else network
    return measure_loop(request, network, lambda inputs, targets: forward(input_ids=inputs, labels=inputs).loss)
