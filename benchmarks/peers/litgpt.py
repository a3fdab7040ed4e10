"""litgpt's GPT class at the same width, depth and heads (rotary positions and an untied head, as it has no others)."""

from importlib.util import find_spec

import torch

from benchmarks.peers.loop import measure_loop
from benchmarks.request import Request


def missing(nanogpt: str | None) -> str | None:
    """Why it cannot run."""
    return None if find_spec("litgpt") else "litgpt is left out: pip install --no-deps litgpt"


def measure(request: Request) -> list[float]:
    """Tokens/s of each window."""
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    shape = request.shape
    torch.manual_seed(1337)
    config = Config(
        name="benchmark",
        block_size=shape.block_size,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        intermediate_size=4 * shape.n_embd,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )
    network = GPT(config)
    network.apply(network._init_weights)
    network.to(request.device)
    forward = torch.compile(network) if request.compiled else network
    # Its default chunks of 128 tokens save memory and are slower: 0 is its fastest.
    return measure_loop(
        request, network, lambda inputs, targets: chunked_cross_entropy(forward(inputs), targets, chunk_size=0)
    )
