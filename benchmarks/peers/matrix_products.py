"""The bound: tokens/s if a step were its matrix products alone, at the rate of a large square one."""

import torch

from benchmarks.peers.ours_bare import model_config
from benchmarks.request import Request
from lightning_gpt.nn.flops import training_flops_per_token
from lightning_gpt.nn.machine_limits import gemm_flops


def missing(nanogpt: str | None) -> str | None:
    """Never."""
    return None


def measure(request: Request) -> list[float]:
    """Tokens/s of each trial; CPU only."""
    flops = training_flops_per_token(model_config(request.shape), request.shape.block_size)
    dtype = torch.bfloat16 if request.bf16 else torch.float32
    return [gemm_flops(dtype) / flops for _ in range(request.windows)]
