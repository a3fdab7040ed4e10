"""Pictures from files to RGB: whatever people have in their folders, or one line that says what is wrong with it."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".svg")
MAX_PIXELS = 50_000_000
"""Larger pictures would take more than 150 MB each to be made smaller."""
MIN_SIDE = 4
SVG_SIDE = 256
VISION_INSTALL = "pip install 'lightning_gpt[vision]'"


class PictureError(ValueError):
    """A picture that cannot be used; the message names it and says why."""


def open_picture(
    source: str | Path | bytes, name: str = "", background: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image:
    """One picture as 8-bit RGB, upright.

    16-bit pictures are scaled down, CMYK and palettes converted, transparent ones laid on the background, of animated
    ones the first frame is taken, SVG is drawn 256 pixels wide.

    Args:
        source: file, or the file's bytes.
        name: for messages; empty: the file's.
        background: red, green, blue behind what is transparent.

    Raises:
        PictureError: missing, empty, truncated, no picture, fewer than 4 pixels wide or high, more than 50 megapixels.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(f"pictures need `{VISION_INSTALL}`") from error
    name = name or ("a picture" if isinstance(source, bytes) else str(source))
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise PictureError(f"{name} cannot be read: {error.strerror or error}") from None
    if not content:
        raise PictureError(f"{name} is empty")
    if content.lstrip()[:5] in (b"<?xml", b"<svg ") or name.endswith(".svg"):
        content = _drawn(content, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content))
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise PictureError(
                    f"{name} has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million: make it smaller"
                )
            if min(width, height) < MIN_SIDE:
                raise PictureError(f"{name} has {width} x {height} pixels, too few to see anything")
            picture.load()
            return _rgb(ImageOps.exif_transpose(picture), background)
    except UnidentifiedImageError:
        raise PictureError(f"{name} is no picture that can be read ({', '.join(SUFFIXES)})") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{name} has too many pixels: make it smaller") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError(f"{name} is damaged: {error}") from None


def _rgb(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    from PIL import Image

    if picture.mode.startswith(("I", "F")):  # 16 bits and more: PIL's own conversion cuts off at 255
        import numpy as np

        values = np.asarray(picture, dtype=np.float32)
        highest = 65535.0 if picture.mode.startswith("I") else max(float(values.max()), 1e-9)
        picture = Image.fromarray((values.clip(0, highest) * (255 / highest)).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (*background, 255))
        picture = Image.alpha_composite(ground, picture)
    return picture.convert("RGB")


def _drawn(content: bytes, name: str, side: int = SVG_SIDE) -> bytes:
    """A PNG of an SVG."""
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError(f"{name}: SVG pictures need `{VISION_INSTALL}`") from error
    try:
        return bytes(resvg_py.svg_to_bytes(svg_string=content.decode("utf-8"), width=side))
    except Exception as error:  # the library raises its own
        raise PictureError(f"{name} is no SVG that can be drawn: {error}") from None
