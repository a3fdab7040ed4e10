"""The bare training loop that every contestant but our Trainer runs in: what nanoGPT's train.py does in a step.

Batches of random tokens are made beforehand, so the loop pays nothing for data; our Trainer path does.
"""

import time
from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor, nn

from benchmarks.request import Request

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(input_ids (B, T), targets (B, T)) -> mean loss."""


def training_step(request: Request, network: nn.Module, loss_of: LossFunction) -> Callable[[], Tensor]:
    """One optimizer step on the next batch, as a function that returns its loss.

    Args:
        request: what to measure.
        network: on the device, in float32.
        loss_of: mean loss through `network`, compiled where that is asked for.
    """
    shape, device = request.shape, torch.device(request.device)
    torch.backends.cuda.matmul.allow_tf32 = True  # as nanoGPT's train.py
    torch.manual_seed(1337)
    windows = torch.randint(shape.vocab_size, (8, shape.batch_size, shape.block_size + 1), device=device)
    batches = cycle([(window[:, :-1].contiguous(), window[:, 1:].contiguous()) for window in windows])
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> Tensor:
        inputs, targets = next(batches)
        with torch.autocast(device.type, torch.bfloat16, enabled=request.bf16):
            loss = loss_of(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def measure_loop(request: Request, network: nn.Module, loss_of: LossFunction) -> list[float]:
    """Tokens/s of each timed window of training_step."""
    step = training_step(request, network, loss_of)
    rates = []
    for _ in range(1 + request.windows):
        start = time.perf_counter()
        for _ in range(request.window_steps):
            loss = step()
        loss.item()  # waits for a GPU
        rates.append(request.shape.tokens * request.window_steps / (time.perf_counter() - start))
    return rates[1:]
