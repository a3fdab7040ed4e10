"""Every weight's start, in one place.

| weight                           | gpt2 (Radford et al., 2019)           | zero_output (speed-run practice)     |
|----------------------------------|---------------------------------------|--------------------------------------|
| token embedding                  | normal(0, init_std)                   | normal(0, 1); init_std when tied     |
| position embedding               | normal(0, init_std)                   | normal(0, init_std)                  |
| qkv, up, gate_up, router         | normal(0, init_std)                   | uniform, std 1 / sqrt(fan_in)        |
| residual projections (out, down) | normal(0, init_std / sqrt(2 n_layer)) | 0: a block starts as the identity    |
| head (untied)                    | normal(0, init_std)                   | 0: the first loss is ln(vocab_size)  |
| biases; norm gains               | 0; 1                                  | 0; 1                                 |
"""

import math

from torch import Tensor, nn

from lightning_gpt.nn.config import GPTConfig
from lightning_gpt.nn.experts import Experts

RESIDUAL_PROJECTIONS = ("attention.out", "feed_forward.down", "shared.down")


def initialize(network: nn.Module, config: GPTConfig) -> None:
    """Fills every parameter in place as the table above says, drawing from torch's global generator."""
    zero = config.initialization == "zero_output"
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name == "head" and config.tie_embeddings:
                continue
            if zero and name == "head":
                nn.init.zeros_(module.weight)
            else:
                _fill(module.weight, config, residual=name.endswith(RESIDUAL_PROJECTIONS))
        elif isinstance(module, Experts):
            _fill(module.up, config, residual=False)
            _fill(module.down, config, residual=True)
        elif isinstance(module, nn.Embedding):
            unit = zero and name == "token_embedding" and not config.tie_embeddings
            nn.init.normal_(module.weight, std=1.0 if unit else config.init_std)


def _fill(weight: Tensor, config: GPTConfig, residual: bool) -> None:
    """A matrix (out, in), or a stack of them (experts, out, in), in place."""
    if config.initialization == "gpt2":
        nn.init.normal_(weight, std=config.init_std / math.sqrt(2 * config.n_layer) if residual else config.init_std)
    elif residual:
        nn.init.zeros_(weight)
    else:
        bound = math.sqrt(3 / weight.shape[-1])
        nn.init.uniform_(weight, -bound, bound)
