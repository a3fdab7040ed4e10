"""`lightning-gpt inspect`: what a network is made of, as a table and as pictures."""

from pathlib import Path

import torch
from torch import nn

from lightning_gpt.nn import GPT
from lightning_gpt.nn.quantized_linear import QuantizedLinear


def module_table(net: GPT, context: int) -> list[tuple[str, str, str, int, float]]:
    """(name, class, shapes of its own weights, parameters, forward FLOPs a token) of every module with weights of its
    own; blocks equal to the one before are left out, and attention's scores are a row of their own.

    Args:
        net: the network.
        context: tokens of a sequence, for the scores.
    """
    config, rows = net.config, []
    tied = config.tie_embeddings
    for name, module in net.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, QuantizedLinear):  # its numbers are no parameters, but stand for as many
            own = {"weight": torch.empty(module.out_features, module.in_features, device="meta")}
            own |= {} if module.bias is None else {"bias": module.bias}
        if own and not (tied and name == "head"):
            shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in own.items())
            size = sum(value.numel() for value in own.values())
            matrices = sum(value.numel() for value in own.values() if value.ndim >= 2)
            flops = 0.0 if isinstance(module, nn.Embedding) else 2.0 * matrices
            if config.moe is not None and name.endswith(".experts"):
                flops *= config.moe.top_k / config.moe.experts
            rows.append((name, type(module).__name__, shapes, size, flops))
        if name.endswith(".attention"):
            keys = min(config.windows[module.layer] or context, context)
            rows.append((f"{name} scores", "", f"{keys} keys", 0, 4.0 * config.n_head * config.head_size * keys))
    if tied:
        head = config.padded_vocab_size * config.n_embd
        rows.append(("head", "Linear", "the token embedding's weight", 0, 2.0 * head))
    return rows


def shorten(rows: list[tuple]) -> list[tuple]:
    """Rows in which blocks that equal the one before them stand as one line."""
    grouped: list[tuple[int | None, list[tuple]]] = []
    for row in rows:
        first, _, rest = row[0].partition(".")
        layer = int(rest.partition(".")[0]) if first == "blocks" else None
        if not grouped or grouped[-1][0] != layer:
            grouped.append((layer, []))
        grouped[-1][1].append(row)
    shown: list[tuple] = []
    pattern, of, same = None, 0, 0
    for layer, members in [*grouped, (None, [])]:
        inner = [(row[0].split(".", 2)[2], *row[1:]) for row in members] if layer is not None else None
        if inner is not None and inner == pattern:
            same = layer
            continue
        if same:
            shown.append((f"blocks.{of + 1}" + (f" to {same}" if same > of + 1 else ""), "", f"as blocks.{of}", 0, 0.0))
        pattern, of, same = inner, layer or 0, 0
        shown += members
    return shown


def inspect_command(model: str, out: str | None = None, text: str | None = None, context: int | None = None) -> None:
    """Print the modules of a network with shapes, parameters and operations; draw positions and attention maps.

    Args:
        model: preset (its shape with random weights), checkpoint, run directory or model directory.
        out: directory for positions.png and attention.png; null = no pictures.
        text: what the attention maps look at; needs a model with a tokenizer.
        context: tokens of a sequence, for operations; null = the network's block size.
    """
    from lightning_gpt.cli.plan import count
    from lightning_gpt.nn.presets import PRESETS

    tokenizer = None
    if model in PRESETS:
        with torch.device("meta"):
            net = GPT(PRESETS[model])
        net.build_tables("cpu")
    else:
        from lightning_gpt.hub import open_model

        net, tokenizer = open_model(model)
    if text is not None and tokenizer is None:
        raise ValueError(f"text={text!r} needs a trained model with a tokenizer: {model} has none")
    if text is not None and out is None:
        raise ValueError(f"text={text!r} has nowhere to be drawn: set out to a directory")
    context = context or net.config.block_size
    rows = module_table(net, context)
    shown = shorten(rows)
    widths = [max(len(str(row[column])) for row in shown) for column in range(3)]
    for name, kind, shapes, size, flops in shown:
        numbers = f"{size:>14,}  {count(flops, 'FLOP'):>11}" if size or flops else ""
        print(f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {shapes:<{widths[2]}}  {numbers}".rstrip())
    total, flops = sum(row[3] for row in rows), sum(row[4] for row in rows)
    print(f"total {total:,} parameters, {count(flops, 'FLOP')} a token forward at {context:,} tokens")
    if out is not None:
        draw(net, tokenizer, text, Path(out))


def draw(net: GPT, tokenizer, text: str | None, directory: Path) -> None:
    """positions.png, and attention.png where there is a text."""
    from lightning_gpt.callbacks.attention_maps import attention_weights, draw_attention
    from lightning_gpt.cli.position_plots import draw_positions

    directory.mkdir(parents=True, exist_ok=True)
    pictures = {}
    if net.config.position not in ("learned",) or not net.token_embedding.weight.is_meta:
        pictures["positions.png"] = draw_positions(net)
    if text is not None:
        ids = tokenizer.encode(text)[: net.config.block_size]
        labels = [tokenizer.decode([token]) for token in ids]
        pictures["attention.png"] = draw_attention(attention_weights(net, ids), labels)
    for name, figure in pictures.items():
        if figure is not None:
            figure.savefig(directory / name, dpi=130)
            print(f"drawn: {directory / name}")
