"""How a network tells positions, as a picture."""

import torch

from lightning_gpt.nn import GPT
from lightning_gpt.nn.positions import rotate

SHOWN = 512
"""Positions of a picture at most: beyond, its columns are narrower than a dot."""


def draw_positions(net: GPT):
    """A picture for the network's kind of positions, None for kinds that have nothing to draw.

    learned, sinusoidal: the table and the cosine similarity of its rows; rotary: the angles' cosine and the score of
    two equal vectors over their distance; alibi: what each head takes off over distance.

    Returns:
        a matplotlib Figure or None.
    """
    from matplotlib.figure import Figure

    kind = net.config.position
    if kind == "none":
        return None
    figure = Figure(figsize=(10, 4), layout="constrained")
    if kind == "alibi":
        axes = figure.subplots()
        distance = torch.arange(min(net.config.block_size, 256))
        for head, slope in enumerate(net.slopes_H.tolist()):
            axes.plot(distance, -slope * distance, label=f"head {head}", linewidth=1)
        axes.set(xlabel="distance in tokens", ylabel="added to the score", title="ALiBi", ylim=(-20, 0.5))
        axes.legend(fontsize=7, ncols=2)
        return figure
    left, right = figure.subplots(1, 2)
    if kind == "rotary":
        table = net.rotary.cos_TD[:SHOWN, : net.config.rotary_size // 2].float().cpu()
        _image(figure, left, table.T, "cosine of the angle", "position", "pair of a head")
        x = torch.ones(1, 1, 1, net.config.rotary_size, device=net.rotary.cos_TD.device)
        reach = min(net.config.block_size, 256)
        turned = rotate(x.expand(1, 1, reach, -1), *net.rotary(slice(0, reach), x.dtype))[0, 0]
        right.plot((turned @ turned[0]).cpu() / net.config.rotary_size)
        right.set(xlabel="distance in tokens", ylabel="score", title="score of two equal vectors of ones")
        return figure
    table = net.position_embedding.weight[:SHOWN].detach().float().cpu()
    _image(figure, left, table.T, f"{kind} table", "position", "column")
    unit = table / table.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    _image(figure, right, unit @ unit.T, "cosine similarity of positions", "position", "position")
    return figure


def _image(figure, axes, values, title: str, xlabel: str, ylabel: str) -> None:
    limit = values.abs().max().item()
    picture = axes.imshow(values, cmap="RdBu_r", aspect="auto", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    figure.colorbar(picture, ax=axes)
