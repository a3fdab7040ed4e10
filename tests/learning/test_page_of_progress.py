"""`lightning-gpt learn` on a terminal, and `learn page`."""

import io
import re
from html.parser import HTMLParser

from rich.console import Console

from lightning_gpt.cli import main
from lightning_gpt.learning.chapters import chapters
from lightning_gpt.learning.progress import Progress
from lightning_gpt.learning.status import plain_lines, rich_table

SOME = Progress({"01.1": "2026-01-02"}, {"01.1": 2, "01.2": 1}, {"01.2": 1}, {})


class Balanced(HTMLParser):
    """Every tag that opens is closed in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.text, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_loads_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIGHTNING_GPT_LEARN", str(tmp_path / "learn.json"))
    SOME.save()
    main(["learn", "page", "--out", str(tmp_path / "deep/learn.html")])
    assert capsys.readouterr().out == f"written: {tmp_path}/deep/learn.html\n"
    page = (tmp_path / "deep/learn.html").read_text(encoding="utf-8")
    reader = Balanced()
    reader.feed(page)
    assert not reader.open and not reader.links and "url(" not in page and "@import" not in page
    text = " ".join("".join(reader.text).split())
    total = sum(len(one.exercises) for one in chapters())
    assert f"1 of {total} exercises solved. Next:" in text
    assert "solved 2026-01-02" in text and "1 try, 1 of 2 hints" in text
    for one in chapters():
        assert one.chinese in text and all(exercise.title in text for exercise in one.exercises)


def test_lines_without_a_terminal():
    lines = plain_lines(chapters(), SOME)
    assert re.match(r"01 +●◐○+ +1/\d+  Configuration$", lines[0]) and len(lines) == 14


def test_a_table_on_a_terminal():
    console = Console(width=140, record=True, force_terminal=True, file=io.StringIO())
    console.print(rich_table(chapters(), SOME))
    text = console.export_text()
    assert "1 of " in text and "●◐○" in text and "模型结构" in text
