"""The recipe data/picture_questions.py, on pictures drawn here."""

import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

DATA = Path(__file__).parents[2] / "data"
DRAWN = {  # of Twemoji's and OpenMoji's palettes
    "red": ["#DD2E44", "#BE1931", "#d22f27"],
    "orange": ["#F4900C", "#e27022"],
    "yellow": ["#FFCC4D", "#fcea2b"],
    "green": ["#77B255", "#3E721D", "#b1cc33", "#5c9e31"],
    "blue": ["#55ACEE", "#226699", "#92d3f5", "#1e50a0"],
    "purple": ["#AA8DD8", "#744EAA", "#8967aa"],
    "pink": ["#F4ABBA", "#ffa7c0"],
    "brown": ["#C1694F", "#662113", "#a57939", "#6a462f"],
    "black": ["#292F33", "#000000"],
    "grey": ["#99AAB5", "#66757F", "#9b9b9a"],
    "white": ["#FFFFFF", "#F5F8FA"],
}
KINDS = [
    ("Animals & Nature", "animal-mammal", ["cat", "dog", "zebra", "moose", "mouse", "horse"], ["nature"]),
    ("Food & Drink", "food-fruit", ["pear", "lemon", "apple", "grapes", "melon", "cherry"], ["food"]),
    ("Flags", "country-flag", ["Chad", "Peru", "Mali", "Oman", "Cuba", "Iran"], ["flag", "nation"]),
    ("Symbols", "arrow", ["up arrow", "left arrow", "right arrow", "UP! button (new)"], ["key", "blue square"]),
    ("Smileys & Emotion", "face-smiling", ["grinning face", "wink", "blush", "smirk"], ["face"]),
    ("Travel & Places", "time", ["one o'clock", "two o'clock", "alarm clock"], ["face", "clock"]),
    ("", "", ["unsorted thing"], []),
]


def drawing(place: int) -> "Image.Image":
    """One of several shapes in one of several colours, on nothing."""
    picture = Image.new("RGBA", (72, 72))
    draw = ImageDraw.Draw(picture)
    colour = [tones[0] for tones in DRAWN.values()][place % len(DRAWN)]
    boxes = [(2, 2, 69, 69), (2, 20, 69, 52), (25, 4, 45, 68), (10, 10, 60, 60)]
    (draw.ellipse if place % 4 == 0 else draw.rectangle)(boxes[place % 4], fill=colour)
    return picture


@pytest.fixture(scope="module")
def recipe():
    sys.path.insert(0, str(DATA))
    import picture_questions

    yield picture_questions
    sys.path.remove(str(DATA))


@pytest.fixture(scope="module")
def files(recipe, tmp_path_factory) -> dict[str, list[dict]]:
    """What the recipe writes, by file."""
    data = tmp_path_factory.mktemp("data")
    for artist, splits in (("twemoji", ("train", "val")), ("openmoji", ("openmoji_val",))):
        (data / "emoji" / artist).mkdir(parents=True, exist_ok=True)
        for split in splits:
            rows = []
            for category, subcategory, captions, keywords in KINDS:
                for caption in captions:
                    name = f"{artist}/{split.removeprefix('openmoji_')}_{caption.replace(' ', '_')}.png"
                    picture = drawing(len(rows))
                    if artist == "openmoji":
                        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert(
                            "RGB"
                        )
                    picture.save(data / "emoji" / name)
                    row = {"image": name, "caption": caption, "keywords": keywords, "category": category}
                    rows.append({**row, "subcategory": subcategory, "emoji": ""})
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (data / "emoji" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    (data / "fashion_mnist" / "bag").mkdir(parents=True)
    labels = ["bag", "coat"] * 10
    lines = "".join(json.dumps({"image": f"bag/{n:05}.png", "label": label}) + "\n" for n, label in enumerate(labels))
    (data / "fashion_mnist" / "test.jsonl").write_text(lines, encoding="utf-8")
    for number in range(20):
        drawing(number).save(data / "fashion_mnist" / "bag" / f"{number:05}.png")
    recipe.main(data)
    written = {}
    for path in (data / "picture_questions").iterdir():
        written[path.stem] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert all((path.parent / row["image"]).exists() for row in written[path.stem] if "image" in row)
    return written


def test_every_row_can_be_asked(files):
    assert set(files) == {"align", "instruct", "val", "openmoji_val", "fashion_val"}
    for rows in files.values():
        assert rows
        for row in rows:
            asked, answered = row["messages"][::2], row["messages"][1::2]
            assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * len(asked)
            places = [m["content"].count("<image>") for m in row["messages"]]
            assert places == [int("image" in row)] + [0] * (len(places) - 1)
            assert "image" not in row or asked[0]["content"].startswith("<image>\n")
            assert (row["kind"] == "text") == ("image" not in row)
            assert (row["kind"] == "multi_turn") == (len(asked) > 1)
            for message in answered:
                assert message["content"] == message["content"].lower().rstrip(".")
                assert 1 <= len(message["content"].split()) <= 5
    kinds = {"caption", "colour", "shape", "category", "yes_no", "multi_turn", "text"}
    assert {row["kind"] for row in files["instruct"]} == kinds - {"colour", "shape", "category"}
    talks = [
        [message["content"] for message in row["messages"]] for row in files["instruct"] if len(row["messages"]) > 2
    ]
    captions = {row["messages"][1]["content"] for row in files["align"]}
    assert all(talk[-1] in captions and not {"yes", "no"} & set(talk[1::2]) for talk in talks)
    assert {row["kind"] for row in files["val"]} == kinds - {"multi_turn", "text"}
    pictures = {row["image"] for row in files["instruct"] if "image" in row}
    assert [row["kind"] for row in files["align"]] == ["caption"] * len(pictures)
    assert "up! button" in {row["messages"][1]["content"] for row in files["align"]}
    assert not pictures & {row["image"] for name in ("val", "openmoji_val", "fashion_val") for row in files[name]}
    assert sum("fashion_mnist" in row["image"] for row in files["align"]) == 16
    captions = Counter(row["messages"][0]["content"] for row in files["align"])
    assert len(captions) > 3


def test_pixels_are_named_by_their_palette(files):
    for split in ("val", "openmoji_val"):
        found = {
            kind: {
                row["image"].split("_", 1)[1]: row["messages"][1]["content"]
                for row in files[split]
                if row["kind"] == kind
            }
            for kind in ("colour", "shape")
        }
        names = [f"{caption.replace(' ', '_')}.png" for *_, captions, _ in KINDS for caption in captions]
        for place, name in enumerate(names):
            shape, colour = ("round", "wide", "tall", "square")[place % 4], list(DRAWN)[place % len(DRAWN)]
            if split == "openmoji_val" and colour == "white":  # white on white is nothing
                assert name not in found["colour"]
                continue
            assert found["shape"][name] == shape
            assert found["colour"][name] == colour


@pytest.mark.parametrize("colour", DRAWN)
def test_colours(colour, recipe):
    import picture_measures

    for tone in DRAWN[colour]:
        rgb = np.array([[int(tone[place : place + 2], 16) / 255 for place in (1, 3, 5)]])
        assert picture_measures.COLOURS[picture_measures.name_colours(rgb)[0]] == colour, tone


def test_what_is_not_clear_is_not_asked(recipe):
    import picture_measures

    picture = Image.new("RGBA", (72, 72))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(2, 69), (36, 2), (69, 69)], fill="#DD2E44")
    rgb, thing = picture_measures.split_picture(picture)
    assert picture_measures.main_colour(rgb, thing) == "red"
    assert picture_measures.main_shape(thing) is None
    draw.rectangle((0, 36, 71, 71), fill="#55ACEE")
    draw.rectangle((0, 0, 71, 36), fill="#DD2E44")
    rgb, thing = picture_measures.split_picture(picture)
    assert picture_measures.main_colour(rgb, thing) is None
    assert picture_measures.main_shape(thing) == "square"


@pytest.mark.parametrize("split", ["instruct", "val"])
def test_only_the_picture_tells_yes_from_no(files, split):
    by_question = defaultdict(Counter)
    for row in files[split]:
        if row["kind"] == "yes_no":
            question, answer = (message["content"] for message in row["messages"])
            name = re.search(r'"(.*)"', question)
            thing = re.search(r"(?:see|show|there|Can) (?:an? )?(\w+)", question)
            by_question[name[1] if name else thing[1]][answer] += 1
    assert {"flag", "face"} <= by_question.keys()
    assert not {"key", "child"} & by_question.keys()  # a symbol's "key" is none
    for word, answers in by_question.items():
        assert answers["yes"] == answers["no"], word


def test_answers_are_right(files):
    kinds = {
        caption.removesuffix(" (new)").lower(): category for category, _, captions, _ in KINDS for caption in captions
    }
    for row in files["instruct"]:
        question, answer = (message["content"] for message in row["messages"][:2])
        caption = (
            re.sub(r"^(train|val)_", "", Path(row.get("image", "")).stem)
            .replace("_", " ")
            .removesuffix(" (new)")
            .lower()
        )
        if row["kind"] == "yes_no" and caption in kinds and '"' in question:
            assert (answer == "yes") == (f'"{caption}"' in question)
        elif row["kind"] == "yes_no" and re.search(r"\bflag\b", question):
            assert (answer == "yes") == (kinds[caption] == "Flags")
        elif row["kind"] == "yes_no" and re.search(r"\bface\b", question):
            assert (answer == "yes") == (kinds[caption] == "Smileys & Emotion")
        elif row["kind"] == "category":
            assert answer == kinds[caption].lower().replace("&", "and")
        elif row["kind"] == "text":
            assert answer == kinds[re.search('"(.*)"', question)[1]].lower().replace("&", "and")


def test_both_artists_are_asked_the_same(files):
    asked = {}
    for split in ("val", "openmoji_val"):
        asked[split] = {
            (Path(row["image"]).stem, row["messages"][0]["content"], row["messages"][1]["content"])
            for row in files[split]
            if row["kind"] in ("caption", "category", "yes_no")
        }
    assert asked["val"] == asked["openmoji_val"]


def test_the_pictures_must_be_there(recipe, tmp_path):
    with pytest.raises(SystemExit, match=r"run python data/emoji_pictures\.py first"):
        recipe.main(tmp_path)
