"""Which passages of the documentation a question is about: TF-IDF over names and words."""

import json
import re
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer

PASSAGES = Path("data/documentation/passages.jsonl")


class Retrieval:
    """Finds passages.

    Args:
        path: what data/documentation_questions.py wrote.

    Raises:
        SystemExit: it is not there.
    """

    def __init__(self, path: Path = PASSAGES) -> None:
        if not path.exists():
            raise SystemExit(f"{path} is not there: experiments/capstone/README.md says how it is made")
        self.rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        self.vectorizer = TfidfVectorizer(analyzer=terms, sublinear_tf=True)
        # A passage's name stands in its first word already; said once more it counts as much as a rare word.
        self.matrix = self.vectorizer.fit_transform(f"{row['name']} {row['passage']}" for row in self.rows)

    def find(self, question: str, number: int = 3) -> list[dict[str, str]]:
        """The `number` nearest rows of name and passage, the nearest first."""
        nearness = (self.matrix @ self.vectorizer.transform([question]).T).toarray()[:, 0]
        return [self.rows[place] for place in nearness.argsort(kind="stable")[::-1][:number]]


def terms(text: str) -> list[str]:
    """Whole dotted names and their parts, lower case: `os.path.join` is found by itself and by "join"."""
    names = re.findall(r"[A-Za-z_][\w.]*\w", text)
    parts = re.findall(r"[a-z]+|[0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower())
    return [name for name in names if "." in name or "_" in name] + parts
