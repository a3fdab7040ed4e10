"""Questions about pictures with short answers, to teach a language model to see: from emoji with captions.

    python data/emoji_pictures.py      # first, the pictures
    python data/picture_questions.py   # writes data/picture_questions/{align,instruct,val,openmoji_val}.jsonl

Captions and categories are Unicode's; colours and shapes are measured from the pixels, and asked only where they are
clear. align holds one caption a training picture; instruct talks of several turns with all kinds of questions about the
same pictures, and questions without a picture; val (Twemoji) and openmoji_val (another artist) one row a question
about things that were never trained on. With data/fashion_mnist its first pictures join in, and fashion_val is written.

Rows are {"image", "messages", "kind"}; <image> stands in the first message for the picture, whose file is named from
where the rows are. Answers are lower-case words without a full stop. All choices follow from a picture's name, so the
two artists are asked the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from picture_measures import COLOURS, main_colour, main_shape, split_picture
from PIL import Image

DATA = Path(__file__).parent
FASHION_PICTURES = 500
"""So many of Fashion-MNIST's ten classes, or they would outnumber the emoji; every fifth number is kept for val."""

CATEGORIES = (
    "activities",
    "animals and nature",
    "flags",
    "food and drink",
    "objects",
    "people and body",
    "smileys and emotion",
    "symbols",
    "travel and places",
)
SPELLINGS = {
    "airplane": "plane",
    "automobile": "car",
    "boy": "child",
    "children": "child",
    "flags": "flag",
    "girl": "child",
    "men": "man",
    "people": "person",
    "vehicles": "vehicle",
    "women": "woman",
}
BY_SUBCATEGORY = {
    "animal": ["animal"],
    "animal-bird": ["bird"],
    "arrow": ["arrow"],
    "clothing": ["clothing"],
    "country-flag": ["flag"],
    "drink": ["drink"],
    "face": ["face"],
    "family": ["person"],
    "food": ["food"],
    "food-fruit": ["fruit"],
    "food-vegetable": ["vegetable"],
    "musical-instrument": ["instrument"],
    "person": ["person"],
    "place-building": ["building"],
    "plant": ["plant"],
    "plant-flower": ["flower"],
    "subdivision-flag": ["flag"],
}
"""What every picture of such a subcategory, or of one that begins so, shows."""
_PEOPLE = "person man woman child baby"
_TRAVEL = "vehicle car train ship boat plane building house"
_DEVICES = "computer phone camera clock"
ABSENT = {
    "activities": f"animal fruit vegetable plane train {_DEVICES}",
    "animals and nature": f"{_PEOPLE} {_TRAVEL} {_DEVICES} flag clothing tool book drink arrow square circle star",
    "flags": f"face hand hat shoe clothing food drink fruit vegetable ball vehicle car train plane {_DEVICES} tool",
    "food and drink": f"{_PEOPLE} {_TRAVEL} {_DEVICES} face hand hat flag clothing tool arrow book square heart animal",
    "objects": f"{_PEOPLE} animal bird fish dog cat car train ship boat plane building fruit vegetable mountain planet",
    "people and body": "animal bird fish flag building fruit vegetable train ship boat plane planet moon square arrow",
    "smileys and emotion": f"{_TRAVEL} {_DEVICES} flag tree flower tool book fruit vegetable square arrow clothing",
    "symbols": "dog cat fruit vegetable flower drink computer camera book instrument building car clothing mountain",
    "travel and places": f"{_PEOPLE} dog cat fruit vegetable food computer instrument clothing shoe hat book ball",
    "": "",
}
"""What a picture of a category lacks unless its words say otherwise. Much else is often drawn and never said: the
flag of Japan has a circle, a mechanic a tool."""
THINGS = sorted({thing for things in ABSENT.values() for thing in things.split()})
"""Asked for as POPE does (Li et al., 2023): is there one in the picture?"""
FORMS = {"arrow", "circle", "heart", "square", "star"}
"""All that words of a symbol are taken for: a keycap has no key. A clock's face is none either."""
UNCOUNTED = {"clothing", "food"}

ASKED = {
    "align": ("What is this?", "What does the picture show?", "Describe the picture.", "Name this.", "Caption this."),
    "caption": ("What is this?", "What do you see?", "What is in the picture?", "What would you call this?"),
    "colour": (
        "What colour is it mostly?",
        "Which colour stands out?",
        "What is the main colour?",
        f"Which of these is the main colour: {', '.join(COLOURS)}?",
    ),
    "shape": (
        "What shape is it?",
        "How would you describe its outline?",
        "Is it round, square, wide or tall?",
        "Which fits its shape: round, square, wide, tall?",
    ),
    "category": (
        "What kind of thing is it?",
        "Which category does it belong to?",
        f"Choose a category: {', '.join(CATEGORIES)}.",
        f"Which is it: {', '.join(CATEGORIES)}?",
    ),
    "thing": ("Is there {} in the picture?", "Do you see {}?", "Does the picture show {}?", "Can {} be seen here?"),
    "name": ('Is this "{}"?', 'Is "{}" what it shows?', 'Would you call it "{}"?'),
    "text": ('What kind of thing is "{}"?', 'Which category does "{}" belong to?', 'Say the category of "{}".'),
}


@dataclass
class Picture:
    """What is known of one picture."""

    image: str
    """File, from where the rows are."""
    caption: str
    category: str = ""
    things: frozenset[str] = frozenset()
    questions: list[tuple[str, str, str]] = field(default_factory=list)
    """(kind, question, answer)."""

    @property
    def name(self) -> str:
        """The same for all artists."""
        return f"{self.caption}/{Path(self.image).stem}"

    def choose(self, options: Sequence[str], purpose: str) -> str:
        """One of several, always the same."""
        return options[number(f"{self.name}/{purpose}") % len(options)]


def number(text: str) -> int:
    """A large number that follows from a text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def things_of(row: dict) -> frozenset[str]:
    """What of THINGS a picture shows, by its caption, keywords and subcategory."""
    category = row["category"].lower().replace("&", "and")
    words = " ".join([row["caption"], *row["keywords"]]).lower().split()
    said = {SPELLINGS.get(word, word) for word in words} & set(THINGS)
    if category == "symbols":
        said &= FORMS
    elif category not in ("smileys and emotion", "people and body", "animals and nature"):
        said.discard("face")
    shown = (shows for start, shows in BY_SUBCATEGORY.items() if row["subcategory"].startswith(start))
    return frozenset(said.union(*shown).intersection(THINGS))


def read_emoji(path: Path) -> list[Picture]:
    """The rows of data/emoji_pictures.py."""
    pictures = []
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        caption = re.sub(r"\s*\(.*?\)", "", row["caption"]).lower().rstrip(".")
        category = row["category"].lower().replace("&", "and")
        picture = Picture(f"../{path.parent.name}/{row['image']}", caption, category, things_of(row))
        with Image.open(path.parent / row["image"]) as opened:
            rgb, thing = split_picture(opened)
        picture.questions = measured_questions(picture, main_colour(rgb, thing), main_shape(thing))
        pictures.append(picture)
    return pictures


def read_fashion(path: Path) -> tuple[list[Picture], list[Picture]]:
    """Some of Fashion-MNIST: to train on, and for val."""
    parts: tuple[list[Picture], list[Picture]] = ([], [])
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()[:FASHION_PICTURES]):
        picture = Picture(f"../{path.parent.name}/{row['image']}", row["label"].lower())
        picture.questions = measured_questions(picture, None, None)
        parts[int(Path(row["image"]).stem) % 5 == 0].append(picture)
    return parts


def measured_questions(picture: Picture, colour: str | None, shape: str | None) -> list[tuple[str, str, str]]:
    """Questions with one answer, those that have one."""
    category = picture.category if picture.category in CATEGORIES else None
    answers = {"caption": picture.caption, "colour": colour, "shape": shape, "category": category}
    return [(kind, picture.choose(ASKED[kind], kind), answer) for kind, answer in answers.items() if answer]


def ask_yes_no(pictures: list[Picture], both: bool = True) -> None:
    """Adds questions for yes and no about things and names.

    What is in one picture is asked of another that lacks it: every word is asked exactly as often where the answer is
    no as where it is yes, so that nothing but the picture tells. Half of the names are asked within their category.

    Args:
        both: things and names of every picture; else either, or these would be most of what is asked.
    """
    named = [picture for picture in pictures if both or not picture.things or number(f"{picture.name}/form") % 2]
    with_things = [picture for picture in pictures if picture.things and (both or picture not in named)]
    words = [picture.choose(sorted(picture.things), "own thing") for picture in with_things]
    _ask_both(with_things, words, "thing", lambda picture, word: word in picture.things or not _lacks(picture, word))
    groups: dict[str, list[Picture]] = {}
    for picture in named:
        near = number(f"{picture.name}/near") % 2
        groups.setdefault(picture.category if near else "", []).append(picture)
    for group in groups.values():
        _ask_both(group, [p.caption for p in group], "name", lambda picture, word: word == picture.caption)


def _lacks(picture: Picture, word: str) -> bool:
    return word in ABSENT[picture.category].split()


def _ask_both(pictures: list[Picture], words: list[str], form: str, holds: Callable[[Picture, str], bool]) -> None:
    """A yes for the pictures and their words, a no for as many others."""
    others = exchanged(pictures, words, holds)
    left = Counter(others)
    for picture, other, word in zip(pictures, others, words, strict=True):
        asked = {"no": other, "yes": word if left[word] > 0 else None}
        left[word] -= 1
        for answer, about in asked.items():
            if about is not None:
                shown = f"{'an' if about[0] in 'aeiou' else 'a'} {about}"
                shown = about if form == "name" or about in UNCOUNTED else shown
                question = picture.choose(ASKED[form], f"{form}/{answer}").format(shown)
                picture.questions.append(("yes_no", question, answer))


def exchanged(pictures: list[Picture], words: list[str], holds: Callable[[Picture, str], bool]) -> list[str | None]:
    """The words in another order, so that each is with a picture for which it does not hold; None where that fails."""
    given = list(words)
    order = list(range(len(words)))
    draw = random.Random(len(words))
    draw.shuffle(order)
    for place, own in enumerate(order):
        given[own] = words[order[place - 1]]
    for own in order:
        if holds(pictures[own], given[own]):
            for other in draw.sample(order, len(order)):
                if not holds(pictures[own], given[other]) and not holds(pictures[other], given[own]):
                    given[own], given[other] = given[other], given[own]
                    break
    return [None if holds(picture, word) else word for picture, word in zip(pictures, given)]


def talk(turns: list[tuple[str, str, str]], seen: bool = True) -> list[dict[str, str]]:
    """Messages of one or several questions with their answers, the picture first."""
    messages = []
    for place, (_, question, answer) in enumerate(turns):
        shown = "<image>\n" if seen and place == 0 else ""
        messages += [{"role": "user", "content": shown + question}, {"role": "assistant", "content": answer}]
    return messages


def row_of(picture: Picture, kind: str, turns: list[tuple[str, str, str]]) -> dict:
    """One line of a file."""
    return {"image": picture.image, "messages": talk(turns), "kind": kind}


def align_rows(pictures: list[Picture]) -> list[dict]:
    """One caption a picture."""
    return [
        row_of(picture, "caption", [("caption", picture.choose(ASKED["align"], "align"), picture.caption)])
        for picture in pictures
    ]


def question_rows(pictures: list[Picture]) -> list[dict]:
    """One row a question."""
    return [row_of(picture, question[0], [question]) for picture in pictures for question in picture.questions]


def lesson_rows(pictures: list[Picture]) -> list[dict]:
    """What a model learns from: of each picture one talk with all questions that have a word for an answer, the caption
    last so that it tells none of the others, each question for yes and no by itself, since what was said would tell it;
    for every third picture also a question that needs none."""
    rows = []
    for picture in pictures:
        draw = random.Random(number(f"{picture.name}/turns"))
        turns = [one for one in picture.questions if one[0] not in ("caption", "yes_no")]
        turns = draw.sample(turns, len(turns)) + [one for one in picture.questions if one[0] == "caption"]
        rows.append(row_of(picture, "multi_turn" if len(turns) > 1 else "caption", turns))
        rows += [row_of(picture, "yes_no", [one]) for one in picture.questions if one[0] == "yes_no"]
        if picture.category in CATEGORIES and draw.random() < 1 / 3:
            question = picture.choose(ASKED["text"], "text").format(picture.caption)
            rows.append({"messages": talk([("text", question, picture.category)], seen=False), "kind": "text"})
    return rows


def write(out: Path, name: str, rows: list[dict]) -> None:
    """One file, and what it holds: rows by kind, and how often the commonest answer is right.

    Rows stand in an order that follows from their words alone, so that the first thousand are like all others.
    """
    rows = sorted(rows, key=lambda row: hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest())
    temporary = out / f".{name}.tmp"
    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(temporary, out / f"{name}.jsonl")
    print(f"{out / name}.jsonl: {len(rows):,} rows")
    answers: dict[str, Counter[str]] = {}
    for row in rows:
        answers.setdefault(row["kind"], Counter())[row["messages"][-1]["content"]] += 1
    for kind, counts in answers.items():
        (commonest, times), total = counts.most_common(1)[0], counts.total()
        print(f"  {kind:<10} {total:6,}   commonest answer {times / total:4.0%} {commonest}")


def main(data: Path = DATA) -> None:
    """Writes the files."""
    emoji, fashion, out = data / "emoji", data / "fashion_mnist" / "test.jsonl", data / "picture_questions"
    if not (emoji / "train.jsonl").exists():
        raise SystemExit(f"{emoji / 'train.jsonl'} is not there: run python data/emoji_pictures.py first")
    sets = {name: read_emoji(emoji / f"{name}.jsonl") for name in ("train", "val", "openmoji_val")}
    if fashion.exists():
        more, sets["fashion_val"] = read_fashion(fashion)
    else:
        more = []
    learnt = sets.pop("train"), more
    for pictures in learnt:
        ask_yes_no(pictures, both=False)
    for pictures in sets.values():
        ask_yes_no(pictures)
    train = learnt[0] + learnt[1]
    out.mkdir(parents=True, exist_ok=True)
    write(out, "align", align_rows(train))
    write(out, "instruct", lesson_rows(train))
    for name, pictures in sets.items():
        write(out, name, question_rows(pictures))


if __name__ == "__main__":
    main()
