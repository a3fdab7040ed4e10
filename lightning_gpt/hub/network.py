"""A network made around weights that are already there."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.quantized_linear import QuantizedLinear


def network_from_state(
    config: GPTConfig,
    state: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    act_bits: int | None = None,
) -> GPT:
    """A GPT in evaluation mode that holds exactly these weights.

    Nothing is initialised first: no time, no memory and no random number is spent on weights that are replaced.

    Args:
        config: the network.
        state: its state_dict; the head may be left out when it is tied. Where there is a `scale` beside a `weight`, the
            layer is a QuantizedLinear.
        source: file or directory, for messages.
        dtype: of the parameters; None keeps each as stored.
        device: where they go.
        act_bits: of the inputs of quantized layers.

    Raises:
        ValueError: missing, left-over or misshapen weights, by name.
    """
    with torch.device("meta"):
        net = GPT(config)
        _put_quantized_layers(net, state, source, act_bits)
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
    net.load_state_dict({name: _brought(name, tensor, dtype, device) for name, tensor in state.items()}, assign=True)
    if config.tie_embeddings:
        net.head.weight = net.token_embedding.weight
    net.build_tables(device)
    return net.eval()


def _put_quantized_layers(net: GPT, state: Mapping[str, Tensor], source: str, act_bits: int | None) -> None:
    """Exchanges the layers whose weights are whole numbers with scales."""
    for name in [name.removesuffix(".scale") for name in state if name.endswith(".scale")]:
        weight, scale = state.get(name + ".weight"), state[name + ".scale"]
        linear = dict(net.named_modules()).get(name)
        if not isinstance(linear, torch.nn.Linear) or weight is None:
            raise ValueError(f"{source} has unexpected weight(s) {name}.scale")
        bits, groups = 4 if weight.dtype == torch.uint8 else 8, scale.shape[1]
        size, biased = linear.in_features // groups, linear.bias is not None
        layer = QuantizedLinear(linear.in_features, linear.out_features, bits, size, act_bits, biased)
        net.set_submodule(name, layer)


def _brought(name: str, tensor: Tensor, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
    """A weight in the type and place that are asked for; whole numbers and their scales stay what they are."""
    exact = not tensor.is_floating_point() or name.endswith(".scale")
    return tensor.to(device) if exact else tensor.to(device, dtype)
