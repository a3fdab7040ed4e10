"""Small left-to-right graphs in Mermaid's notation, drawn as SVG while the site is built."""

import html
import re
import unicodedata
from itertools import pairwise

NODE = re.compile(r'(\w+)(?:\["?([^\]"]*)"?\])?')
ARROW = re.compile(r"\s*(-->|-\.->)\s*")
HEIGHT, GAP_X, GAP_Y, MARGIN = 34, 56, 16, 8


def drawn(fence: str) -> str:
    """The SVG of a fenced block that begins with `graph LR`.

    Raises:
        ValueError: it is something else.
    """
    lines = [line.strip() for line in fence.splitlines()[1:-1] if line.strip()]
    if lines[0] not in ("graph LR", "flowchart LR"):
        raise ValueError(f"only `graph LR` is drawn, this is {lines[0]!r}")
    labels: dict[str, str] = {}
    edges: list[tuple[str, str, bool]] = []
    for line in lines[1:]:
        parts = ARROW.split(line)
        names = []
        for part in parts[::2]:
            found = NODE.fullmatch(part)
            if not found:
                raise ValueError(f"cannot read {part!r} in {line!r}")
            if found[2] or found[1] not in labels:
                labels[found[1]] = found[2] or found[1]
            names.append(found[1])
        edges += [(a, b, arrow == "-.->") for a, b, arrow in zip(names, names[1:], parts[1::2])]
    return svg(labels, edges)


def layers(labels: dict[str, str], edges: list[tuple[str, str, bool]]) -> tuple[list[list[str]], list[list[str]]]:
    """Nodes by the length of the longest way to them, each layer in the order of where its arrows come from.

    Returns:
        The layers, and the way of each arrow: where it crosses a layer it has a place of its own there.
    """
    depth = dict.fromkeys(labels, 0)
    for _ in labels:
        for a, b, _ in edges:
            depth[b] = max(depth[b], depth[a] + 1)
    columns = [[name for name in labels if depth[name] == level] for level in range(max(depth.values()) + 1)]
    ways = []
    for a, b, _ in edges:
        crossed = range(depth[a] + 1, depth[b])
        ways.append([a, *(f"{a} {b} {level}" for level in crossed), b])
        for level in crossed:
            columns[level].append(f"{a} {b} {level}")
    for level in range(1, len(columns)):
        before = {name: (index + 0.5) / len(columns[level - 1]) for index, name in enumerate(columns[level - 1])}

        def mean_origin(name: str, before: dict[str, float] = before) -> float:
            origins = [before[x] for way in ways for x, y in pairwise(way) if y == name and x in before]
            return sum(origins) / max(1, len(origins))

        columns[level].sort(key=mean_origin)
    return columns, ways


def text_width(text: str) -> int:
    """Pixels at 13 px: Chinese characters are square, others about half as wide."""
    return sum(14 if unicodedata.east_asian_width(letter) in "WF" else 8 for letter in text)


def tall(name: str) -> int:
    """Height of a box with what lies below it; an arrow that crosses a layer takes little (its name has spaces)."""
    return GAP_Y if " " in name else HEIGHT + GAP_Y


def middle(name: str) -> float:
    """Where arrows meet a box, from its upper edge."""
    return 0 if " " in name else HEIGHT / 2


def svg(labels: dict[str, str], edges: list[tuple[str, str, bool]]) -> str:
    """Boxes in columns, curves between them."""
    columns, ways = layers(labels, edges)
    height = MARGIN * 2 + max(sum(tall(name) for name in column) for column in columns) - GAP_Y
    boxes: dict[str, tuple[float, float, float]] = {}
    x: float = MARGIN
    for column in columns:
        width = max(text_width(labels[name]) for name in column if name in labels) + 20
        y = (height - sum(tall(name) for name in column) + GAP_Y) / 2
        for name in column:
            boxes[name] = (x, y, width)
            y += tall(name)
        x += width + GAP_X
    parts = [
        f'<figure class="graph"><svg xmlns="http://www.w3.org/2000/svg" width="{x - GAP_X + MARGIN:.0f}" '
        f'viewBox="0 0 {x - GAP_X + MARGIN:.0f} {height}" role="img">',
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z"/></marker></defs>',
    ]
    for way, (_, _, dotted) in zip(ways, edges):
        line = ""
        for a, b in pairwise(way):
            x1, y1 = boxes[a][0] + boxes[a][2], boxes[a][1] + middle(a)
            x2, y2 = boxes[b][0], boxes[b][1] + middle(b)
            bend = (x2 - x1) / 2
            line += f"{'L' if line else 'M'}{x1:.0f},{y1:.0f} "
            line += f"C{x1 + bend:.0f},{y1:.0f} {x2 - bend:.0f},{y2:.0f} {x2:.0f},{y2:.0f} "
        look = ' class="dotted"' if dotted else ""
        parts.append(f'<path{look} d="{line.strip()}" marker-end="url(#arrow)"/>')
    for name, (left, top, width) in boxes.items():
        if name not in labels:
            continue
        parts.append(f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{HEIGHT}" rx="6"/>')
        parts.append(
            f'<text x="{left + width / 2:.0f}" y="{top + HEIGHT / 2 + 5:.0f}" text-anchor="middle">'
            f"{html.escape(labels[name])}</text>"
        )
    return "".join([*parts, "</svg></figure>"])
