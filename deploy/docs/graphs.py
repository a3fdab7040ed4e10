"""Small left-to-right graphs in Mermaid's notation, drawn as SVG while the site is built."""

import html
import re
import unicodedata

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


def layers(labels: dict[str, str], edges: list[tuple[str, str, bool]]) -> list[list[str]]:
    """Nodes by the length of the longest way to them, each layer in the order of where its arrows come from."""
    depth = dict.fromkeys(labels, 0)
    for _ in labels:
        for a, b, _ in edges:
            depth[b] = max(depth[b], depth[a] + 1)
    columns = [[name for name in labels if depth[name] == level] for level in range(max(depth.values()) + 1)]
    for level in range(1, len(columns)):
        place = {name: index / len(column) for column in columns[:level] for index, name in enumerate(column)}

        def mean_origin(name: str, place: dict[str, float] = place) -> float:
            origins = [place[a] for a, b, _ in edges if b == name and a in place]
            return sum(origins) / max(1, len(origins))

        columns[level].sort(key=mean_origin)
    return columns


def text_width(text: str) -> int:
    """Pixels at 13 px: Chinese characters are square, others about half as wide."""
    return sum(14 if unicodedata.east_asian_width(letter) in "WF" else 8 for letter in text)


def svg(labels: dict[str, str], edges: list[tuple[str, str, bool]]) -> str:
    """Boxes in columns, curves between them."""
    columns = layers(labels, edges)
    height = MARGIN * 2 + max(len(column) for column in columns) * (HEIGHT + GAP_Y) - GAP_Y
    boxes: dict[str, tuple[float, float, float]] = {}
    x: float = MARGIN
    for column in columns:
        width = max(text_width(labels[name]) for name in column) + 20
        y = (height - len(column) * (HEIGHT + GAP_Y) + GAP_Y) / 2
        for name in column:
            boxes[name] = (x, y, width)
            y += HEIGHT + GAP_Y
        x += width + GAP_X
    parts = [
        f'<figure class="graph"><svg xmlns="http://www.w3.org/2000/svg" width="{x - GAP_X + MARGIN:.0f}" '
        f'viewBox="0 0 {x - GAP_X + MARGIN:.0f} {height}" role="img">',
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z"/></marker></defs>',
    ]
    for a, b, dotted in edges:
        x1, y1 = boxes[a][0] + boxes[a][2], boxes[a][1] + HEIGHT / 2
        x2, y2 = boxes[b][0], boxes[b][1] + HEIGHT / 2
        bend = min(GAP_X, (x2 - x1) / 2)
        look = ' class="dotted"' if dotted else ""
        parts.append(
            f'<path{look} d="M{x1:.0f},{y1:.0f} C{x1 + bend:.0f},{y1:.0f} {x2 - bend:.0f},{y2:.0f} {x2:.0f},{y2:.0f}" '
            'marker-end="url(#arrow)"/>'
        )
    for name, (left, top, width) in boxes.items():
        parts.append(f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{HEIGHT}" rx="6"/>')
        parts.append(
            f'<text x="{left + width / 2:.0f}" y="{top + HEIGHT / 2 + 5:.0f}" text-anchor="middle">'
            f"{html.escape(labels[name])}</text>"
        )
    return "".join([*parts, "</svg></figure>"])
