"""What can be said of a drawing from its pixels alone: its main colour and its outline, where they are clear."""

import numpy as np
from PIL import Image

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey", "white")
UNCLEAR = len(COLOURS)


def split_picture(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """RGB on white, (H, W, 3) from 0 to 1, and which pixels belong to the thing, (H, W).

    These are the opaque ones; of pictures without transparency all but the white that reaches the border.
    """
    rgba = np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255
    alpha = rgba[..., 3:]
    rgb = rgba[..., :3] * alpha + 1 - alpha
    opaque = alpha[..., 0] > 0.5
    return rgb, opaque if not opaque.all() else ~reached_from_outside(rgb.min(axis=2) > 0.97)


def reached_from_outside(free: np.ndarray) -> np.ndarray:
    """Which free pixels are connected with the border, (H, W)."""
    free = np.pad(free, 1, constant_values=True)
    reached = np.zeros_like(free)
    reached[0] = reached[-1] = reached[:, 0] = reached[:, -1] = True
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= free
        if (grown == reached).all():
            return reached[1:-1, 1:-1]
        reached = grown


def name_colours(rgb: np.ndarray) -> np.ndarray:
    """Index into COLOURS of every pixel, (N, 3) -> (N,); UNCLEAR between two names.

    By hue in degrees, saturation, value (all of HSV) and chroma = saturation x value.
    """
    value, low = rgb.max(axis=1), rgb.min(axis=1)
    chroma = value - low
    saturation = chroma / np.maximum(value, 1e-6)
    red, green, blue = rgb.T
    safe = np.maximum(chroma, 1e-6)
    hue = np.select(
        [value == red, value == green],
        [(green - blue) / safe % 6, (blue - red) / safe + 2],
        (red - green) / safe + 4,
    )
    hue = hue * 60
    plain = chroma < 0.13
    reddish = (hue < 12) | (hue >= 345)
    warm = (hue >= 12) & (hue < 40)
    rosy = (hue >= 320) | reddish
    chosen = [
        (plain & (value < 0.25), "black"),
        (plain & (value > 0.93) & (chroma < 0.06), "white"),
        (plain & (value >= 0.3) & (value <= 0.88), "grey"),
        (plain, None),
        ((reddish | warm) & (value < 0.45) & (hue < 340), "brown"),
        (reddish & (saturation >= 0.68) & (value >= 0.4), "red"),
        (rosy & (saturation < 0.58) & (value > 0.75), "pink"),
        (rosy, None),
        (warm & (value < 0.8), "brown"),
        (warm & (saturation >= 0.6) & (hue >= 18), "orange"),
        (warm, None),
        ((hue < 66) & (saturation > 0.4) & (value > 0.7), "yellow"),
        (hue < 66, None),
        (hue < 165, "green"),
        ((hue >= 180) & (hue < 245), "blue"),
        ((hue >= 255) & (hue < 310), "purple"),
    ]
    places = [UNCLEAR if name is None else COLOURS.index(name) for _, name in chosen]
    return np.select([where for where, _ in chosen], places, UNCLEAR)


def main_colour(rgb: np.ndarray, thing: np.ndarray) -> str | None:
    """The colour of a picture, where there is one.

    White counts only where it covers 70% of the thing: it is the ground that most drawings are laid on. Otherwise one
    colour must have 55% of what is not white and twice as much as the next, and that must be 30% of the thing.
    """
    if thing.sum() < 50:
        return None
    counts = np.bincount(name_colours(rgb[thing]), minlength=UNCLEAR + 1)
    white = COLOURS.index("white")
    if counts[white] >= 0.7 * counts.sum():
        return "white"
    total = counts.sum()
    counts[white] = 0
    first, second = np.argsort(counts[:UNCLEAR])[:-3:-1]
    clear = counts[first] >= max(0.55 * counts.sum(), 2 * counts[second])
    return COLOURS[first] if clear and counts.sum() >= 0.3 * total else None


def main_shape(thing: np.ndarray) -> str | None:
    """The outline of a thing, where a word fits it.

    wide and tall: one side of its box is 1.3 times the other. Otherwise, if the sides differ by less than 10%, round
    or square: overlap (intersection over union) of at least 0.95 with the box's ellipse, 0.94 with the box.
    """
    filled = ~reached_from_outside(~thing)
    rows, columns = np.flatnonzero(filled.any(axis=1)), np.flatnonzero(filled.any(axis=0))
    if len(rows) < 8 or len(columns) < 8:
        return None
    box = filled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = box.shape
    if max(width / height, height / width) >= 1.3:
        return "wide" if width > height else "tall"
    if max(width / height, height / width) > 1.1:
        return None
    if box.mean() >= 0.94:
        return "square"
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    ellipse = (y * height / (height + 1)) ** 2 + (x * width / (width + 1)) ** 2 <= 1
    return "round" if (box & ellipse).sum() >= 0.95 * (box | ellipse).sum() else None
