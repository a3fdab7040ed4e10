"""A network made around weights that are already there."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_gpt.nn import GPT, GPTConfig


def network_from_state(
    config: GPTConfig,
    state: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> GPT:
    """A GPT in evaluation mode that holds exactly these weights.

    Nothing is initialised first: no time, no memory and no random number is spent on weights that are replaced.

    Args:
        config: the network.
        state: its state_dict; the head may be left out when it is tied.
        source: file or directory, for messages.
        dtype: of the parameters; None keeps each as stored.
        device: where they go.

    Raises:
        ValueError: missing, left-over or misshapen weights, by name.
    """
    with torch.device("meta"):
        net = GPT(config)
    expected = {name: parameter.shape for name, parameter in net.state_dict().items()}
    if config.tie_embeddings:
        state = dict(state) | {"head.weight": state.get("token_embedding.weight", torch.empty(0))}
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    for what, names in (("lacks", missing), ("has unexpected", extra)):
        if names:
            raise ValueError(f"{source} {what} weight(s) {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise ValueError(
                f"{source}: {name} has shape {tuple(state[name].shape)}, its config asks for {tuple(shape)}"
            )
    net.load_state_dict({name: tensor.to(device, dtype) for name, tensor in state.items()}, assign=True)
    if config.tie_embeddings:
        net.head.weight = net.token_embedding.weight
    net.build_tables(device)
    return net.eval()
