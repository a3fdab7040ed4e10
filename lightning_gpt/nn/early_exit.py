"""The first layers of a network as a network of their own (self-speculation: Elhoushi et al., 2024, LayerSkip)."""

from dataclasses import replace

from torch import nn

from lightning_gpt.nn.gpt import GPT


class EarlyExit(GPT):
    """The same embedding, first layers, final norm and head: no weight is copied, and changes of one are the other's.

    Networks give useful guesses early only if they were trained to, or are deep.

    Args:
        net: the whole network.
        layers: how many of its layers are computed.

    Raises:
        ValueError: layers not from 1 to one less than there are.
    """

    def __init__(self, net: GPT, layers: int) -> None:
        if not 1 <= layers < net.config.n_layer:
            raise ValueError(
                f"early exit after layers={layers} must be from 1 to {net.config.n_layer - 1}: the network has "
                f"n_layer={net.config.n_layer}"
            )
        nn.Module.__init__(self)
        moe = net.config.moe
        if moe is not None and not any(map(net.config.is_mixture, range(layers))):
            moe = None  # all experts are in later layers
        self.config = replace(net.config, n_layer=layers, moe=moe)
        for name, module in net.named_children():
            if name != "blocks":
                self.add_module(name, module)
        self.blocks = nn.ModuleList(list(net.blocks)[:layers])
        for name, buffer in net.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=False)
        self.train(net.training)
