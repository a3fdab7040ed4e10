"""Pictures of all kinds come out as RGB, and each that cannot is told by name."""

import io

import numpy as np
import pytest
from PIL import Image

from lightning_gpt.data import pictures
from lightning_gpt.data.pictures import PictureError, open_picture


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def test_sixteen_bits_are_scaled_not_cut():
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    picture = open_picture(encoded(Image.fromarray(ramp), "PNG"))
    assert picture.mode == "RGB"
    expected = (ramp.astype(np.float64) / 65535 * 255).astype(int)
    assert np.abs(np.asarray(picture)[..., 0].astype(int) - expected).max() <= 1


def test_cmyk_palette_and_grey_become_rgb():
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    for content in (
        encoded(red.convert("CMYK"), "JPEG", quality=100),
        encoded(red.convert("P"), "GIF"),
        encoded(red.convert("P"), "PNG"),
    ):
        pixel = np.asarray(open_picture(content))[4, 4].astype(int)
        assert pixel[0] > 240 and pixel[1] < 20 and pixel[2] < 20
    assert open_picture(encoded(red.convert("L"), "PNG")).mode == "RGB"


def test_transparent_pictures_lie_on_the_background():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    content = encoded(clear, "PNG")
    assert np.asarray(open_picture(content)).min() == 255
    assert np.asarray(open_picture(content, background=(10, 20, 30)))[0, 0].tolist() == [10, 20, 30]


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((0, 0, 255), (255, 0, 0))]
    picture = open_picture(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert np.asarray(picture)[4, 4].tolist() == [0, 0, 255]


def test_rotation_by_the_camera_is_undone():
    wide = Image.new("RGB", (20, 10), (0, 255, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    assert open_picture(encoded(wide, "JPEG", exif=exif)).size == (10, 20)


def test_svg_is_drawn(tmp_path):
    path = tmp_path / "square.svg"
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><rect width="4" height="4" fill="blue"/></svg>'
    )
    assert np.asarray(open_picture(path))[5, 5].tolist() == [0, 0, 255]
    path.write_text("<svg")
    with pytest.raises(PictureError, match=r"square.svg is no SVG"):
        open_picture(path)


def test_what_cannot_be_used_is_named_with_the_reason(tmp_path, monkeypatch):
    whole = encoded(Image.new("RGB", (64, 64), "red"), "PNG")
    cases = {
        "missing.png": (None, "cannot be read"),
        "empty.png": (b"", "is empty"),
        "text.png": (b"hello", "is no picture"),
        "cut.png": (whole[:100], "damaged"),
        "dot.png": (encoded(Image.new("RGB", (1, 1)), "PNG"), "1 x 1 pixels, too few"),
    }
    for name, (content, reason) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(PictureError, match=f"{name}.*{reason}"):
            open_picture(path)
    huge = tmp_path / "huge.png"
    Image.new("1", (10_000, 10_000)).save(huge)
    with pytest.raises(PictureError, match=r"huge.png has 10000 x 10000 pixels, more than 50 million"):
        open_picture(huge)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 10**9)
    assert open_picture(huge).size == (10_000, 10_000)
