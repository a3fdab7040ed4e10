"""Questions about Python's manual with passages to answer them from, made by rule from its 8,000 descriptions.

    python data/technical_docs.py data/raw/technical_docs.jsonl.gz
    python data/documentation_questions.py data/raw/technical_docs.jsonl.gz    # writes data/documentation/

A passage is a signature and the first sentences of its description, as in "`os.getpid()`: Return the current process
id." Every question comes with three passages of one section, and is of one of four kinds:

- describe: what does `os.getpid` do? (the first sentence of its description)
- find: which one fits these words? (its name)
- call: how is it called? (its signature)
- absent: one of the others, about something that no passage names (a sentence that says so)

Writes train.jsonl and test.jsonl, rows of `messages` with `kind` and `name`; passages.jsonl, all passages; and
asked.jsonl, messages without answers for a load test, other questions than those two hold. A tenth of the modules is
for test: neither their passages nor their questions are in train.jsonl. Half of the test questions are worded as no
training question is.
"""

import argparse
import gzip
import hashlib
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OUT = Path(__file__).parent / "documentation"
SYSTEM = "You answer questions about Python from the documentation that is given, and from nothing else."
ABSENT = "The documentation given does not describe it."
ASKED = {
    "describe": ["What does `{name}` do?", "Explain `{name}`.", "What is `{name}` for?"],
    "find": ["Which of these is about {words}?", "What do I use for {words}?", "I need {words}. Which one is it?"],
    "call": ["How is `{name}` called?", "What is the signature of `{name}`?", "Which arguments does `{name}` take?"],
}
ASKED_IN_TEST = {
    "describe": ["Tell me in one sentence about `{name}`."],
    "find": ["Name what the documentation has on {words}."],
    "call": ["Show me the parameters of `{name}`."],
}
SHARES = {"describe": 0.4, "find": 0.2, "call": 0.2, "absent": 0.2}
COMMON = re.compile(  # words that say nothing about one description among many
    "the|and|for|that|this|with|from|are|not|which|will|can|has|its|was|when|where|returns?|used?|given|one|any|all|"
    "objects?|values?|functions?|methods?|class|new|only|into|must|does|have|been|also|each|other|than|they|then|there|"
    "whether|while|same|such|would|could|should"
)


@dataclass(frozen=True)
class Entry:
    """One description of the manual."""

    name: str
    signature: str
    sentences: tuple[str, ...]
    module: str
    section: int

    @property
    def passage(self) -> str:
        """What a question comes with: about 40 tokens."""
        text = self.sentences[0]
        for sentence in self.sentences[1:]:
            if len(text) + len(sentence) > 220:
                break
            text += " " + sentence
        return f"`{self.signature}`: {text}"


def entries(documents: list[str]) -> list[Entry]:
    """Each name once, in the manual's order."""
    found: dict[str, Entry] = {}
    for section, text in enumerate(documents):
        for head, body in described(text):
            entry = parsed(head, body, section)
            if entry is not None:
                found.setdefault(entry.name, entry)
    return list(found.values())


def described(text: str) -> Iterator[tuple[str, str]]:
    """Heads (" -- Function: name (arguments)") with the first paragraph of what stands below them."""
    lines = text.split("\n")
    for place, line in enumerate(lines):
        start = re.match(r"^( *)-- [\w ]+: (.+)$", line)
        if not start:
            continue
        depth, head, after = len(start[1]), start[2], place + 1
        while after < len(lines) and lines[after].strip() and indent(lines[after]) > depth + 4:
            head, after = f"{head} {lines[after].strip()}", after + 1
        while after < len(lines) and not lines[after].strip():
            after += 1
        body = []
        while after < len(lines) and lines[after].strip() and indent(lines[after]) > depth:
            body.append(lines[after].strip())
            after += 1
        yield head, " ".join(body)


def indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def plain(text: str) -> str:
    """Without Info's cross references and curled quotes."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\*note (.{1,80}?)(?:: \w+|::)([.,])(?=(\W*)(\w?))", reference, text)
    text = re.sub(r"(?<=[a-z])’(?=[a-z])", "'", text)
    return text.replace("‘", "`").replace("’", "`").replace("“", '"').replace("”", '"').replace("--", "-").strip()


def reference(match: re.Match) -> str:
    """Its text; its full stop ends the reference, and the sentence as well where a capital follows or nothing."""
    ends = match[2] == "," or not match[4] or (match[3].strip(" `‘") == "" and match[4].isupper())
    return match[1] + (match[2] if ends else "")


def parsed(head: str, body: str, section: int) -> Entry | None:
    """None where head or body is none that can be asked about."""
    head = re.sub(r"^(async|classmethod|staticmethod|abstractmethod|class|static|const|unsigned|@) ?", "", plain(head))
    match = re.match(r"^(?:.*?[\s*])?([A-Za-z_][\w.]*)(?: ?\((.*)\))?(?: -> .*)?$", head)
    sentences = [one for one in re.split(r"(?<=[a-z`)\"][.])\s+(?=[A-Z`])", plain(body)) if one]
    if not match or not sentences or (not body.isascii() and "‘" not in body):
        return None
    name, arguments = match[1], match[2]
    first = sentences[0]
    apart = re.match(r"^(New in|Changed in|Deprecated|Note|Availability|See |Same as|Like |Alias|Raises an)", first)
    if apart or not 25 <= len(first) <= 180 or not first.endswith(".") or not first[0].isupper() or len(name) < 4:
        return None
    signature = name if arguments is None else f"{name}({arguments.replace('`', '')})"
    if len(signature) > 100:
        return None
    module = name.split(".")[0] if "." in name else name.split("_")[0] or name
    return Entry(name, signature, tuple(sentences[:3]), module, section)


def key_words(entry: Entry, generator: random.Random) -> list[str]:
    """Two to four words of the first sentence that are not in the name, in their order."""
    parts = set(re.findall(r"[a-z]+", entry.name.lower()))
    words = [
        w
        for w in re.findall(r"[A-Za-z][a-z]{2,}", entry.sentences[0])
        if not COMMON.fullmatch(w.lower()) and w.lower() not in parts
    ]
    words = list(dict.fromkeys(word.lower() for word in words))
    kept = sorted(generator.sample(range(len(words)), min(len(words), generator.randint(2, 4))))
    return [words[place] for place in kept]


def fits(words: list[str], entry: Entry) -> bool:
    """Whether all but one of the words are in its passage: then it would be an answer too."""
    return sum(word in entry.passage.lower() for word in words) >= len(words) - 1


def prompt(passages: list[str], question: str) -> str:
    """What the user says."""
    listed = "\n".join(f"{number}. {passage}" for number, passage in enumerate(passages, 1))
    return f"Documentation:\n{listed}\n\nQuestion: {question}"


def conversation(passages: list[str], question: str, answer: str | None = None) -> list[dict[str, str]]:
    """Messages, with the answer where there is one."""
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt(passages, question)}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def question_about(entry: Entry, others: list[Entry], wordings: dict[str, list[str]], generator: random.Random) -> dict:
    """A row about an entry among two others of its section."""
    kind = generator.choices(list(SHARES), list(SHARES.values()))[0]
    asked = generator.choice(["describe", "call", "find"]) if kind == "absent" else kind
    words = key_words(entry, generator)
    shown = others[:3] if kind == "absent" else [entry, *others[:2]]
    if asked == "find" and (len(words) < 2 or any(fits(words, one) for one in shown if one is not entry)):
        asked, kind = "describe", "absent" if kind == "absent" else "describe"
    question = generator.choice(wordings[asked]).format(name=entry.name, words=", ".join(words))
    generator.shuffle(shown)
    answers = {"describe": entry.sentences[0], "find": f"`{entry.name}`", "call": f"`{entry.signature}`"}
    answer = ABSENT if kind == "absent" else answers[asked]
    passages = [one.passage for one in shown]
    return {"messages": conversation(passages, question, answer), "kind": kind, "name": entry.name}


def is_test(entry: Entry) -> bool:
    """By a hash of the module: whether its questions are kept for the test."""
    return hashlib.sha256(entry.module.encode()).digest()[0] < 26


def rows(known: list[Entry], test: bool, seed: int = 0) -> list[dict]:
    """One question about each entry of train, or of test; others are of the same side and the same section first."""
    generator = random.Random(seed + test)
    own = [entry for entry in known if is_test(entry) == test]
    sections: dict[int, list[Entry]] = defaultdict(list)
    for entry in own:
        sections[entry.section].append(entry)
    made = []
    for entry in own:
        near = [one for one in sections[entry.section] if one is not entry]
        others = generator.sample(near, min(len(near), 3))
        while len(others) < 3:
            other = generator.choice(own)
            if other is not entry and other not in others:
                others.append(other)
        wordings = ASKED_IN_TEST if test and generator.random() < 0.5 else ASKED
        made.append(question_about(entry, others, wordings, generator) | {"new_wording": wordings is ASKED_IN_TEST})
    generator.shuffle(made)
    return made


def write(path: Path, lines: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines), encoding="utf-8")
    temporary.replace(path)
    print(f"{path}: {len(lines):,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="what data/technical_docs.py wrote")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write")
    arguments = parser.parse_args()
    if not arguments.source.exists():
        sys.exit(f"{arguments.source} is not there: python data/technical_docs.py {arguments.source}")
    with gzip.open(arguments.source, "rt", encoding="utf-8") as stream:
        known = entries([json.loads(line)["text"] for line in stream])
    for name, test in (("train", False), ("test", True)):
        write(arguments.out / f"{name}.jsonl", rows(known, test))
    write(arguments.out / "passages.jsonl", [{"name": one.name, "passage": one.passage} for one in known])
    others = [row for test in (False, True) for row in rows(known, test, seed=2)]
    write(arguments.out / "asked.jsonl", [{"messages": row["messages"][:-1]} for row in others])


if __name__ == "__main__":
    main()
