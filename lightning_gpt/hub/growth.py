"""More rows for the vocabulary of a trained network."""

from dataclasses import replace

import torch
from torch import Tensor

from lightning_gpt.hub.network import network_from_state
from lightning_gpt.nn import GPT


def grown(net: GPT, vocab_size: int) -> GPT:
    """A network with room for more token ids.

    The logits of the old ids stay exactly what they were. Rows of new ids, in the embedding and in the head, start as
    the mean of the old ones (Hewitt, 2021): no new token is then likelier than the average old one.

    Args:
        net: stays as it is; the result shares its other weights, so keep one of the two.
        vocab_size: ids that the result has; rows are padded to config.vocab_multiple.

    Returns:
        In evaluation mode; `net` itself when it has as many ids.

    Raises:
        ValueError: fewer ids than it has.
    """
    config = net.config
    if vocab_size < config.vocab_size:
        raise ValueError(f"vocab_size={vocab_size} is less than the network's {config.vocab_size}: rows are only added")
    if vocab_size == config.vocab_size:
        return net
    larger = replace(config, vocab_size=vocab_size)
    state = net.state_dict()
    for name in ("token_embedding.weight", "head.weight"):
        state[name] = _longer(state[name], config.vocab_size, larger.padded_vocab_size)
    return network_from_state(larger, state, "the grown network")


def _longer(rows_VC: Tensor, used: int, size: int) -> Tensor:
    """The first `used` rows, and their mean in all others."""
    mean_C = rows_VC[:used].float().mean(dim=0).to(rows_VC.dtype)
    return torch.cat([rows_VC[:used], mean_C.expand(size - used, -1)])
