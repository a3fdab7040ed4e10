"""Grading in a process of its own: crashes, endless loops and chatter become messages; files, progress, the verb."""

import json
import os

import pytest

from lightning_gpt.cli import main
from lightning_gpt.learning.chapters import chapter, chapters, chosen
from lightning_gpt.learning.examine import judge
from lightning_gpt.learning.exercise import Exercise
from lightning_gpt.learning.grading import Grade, grade
from lightning_gpt.learning.progress import load_progress, progress_file

RIGHT = """
print("chatter")
def split_heads(x, heads):
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)
def merge_heads(x):
    return x.transpose(1, 2).flatten(2)
"""
EVERY = [exercise for one in chapters() for exercise in one.exercises]
(HEADS,) = [exercise for exercise in chapter("05").exercises if exercise.name == "heads"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_GPT_LEARN", str(tmp_path / "kept/learn.json"))
    return tmp_path


def graded(place, text: str, seconds: float | None = None) -> tuple[bool, str]:
    """By a process of its own, which takes seconds to import torch: for what only such a process can survive."""
    path = place / HEADS.file_name
    path.write_text(text)
    found = grade(HEADS, path, seconds)
    return found.right, found.message


def test_a_right_answer_passes(place):
    assert graded(place, RIGHT) == (True, "")


@pytest.mark.parametrize(
    "text, message",
    [
        ("import os\nos._exit(3)", "the process that ran it ended with exit status 3"),
        ("import os\nos.kill(os.getpid(), 11)", "the process that ran it ended with signal 11"),
    ],
)
def test_an_answer_that_ends_its_process_is_a_message(place, text, message):
    assert graded(place, text) == (False, message)


@pytest.mark.parametrize(
    "text, message",
    [
        ("def split_heads(:", "line 1: "),
        ("x = 1", "the file has no function split_heads"),
        ("\n\nimport no_such_module", "line 3: ModuleNotFoundError: No module named 'no_such_module'"),
        (
            RIGHT.replace("    return x.view", "    return x.vieww"),
            "line 4: AttributeError: 'Tensor' object has",
        ),
        (RIGHT.replace("print(", "raise SystemExit("), "line 2: SystemExit: chatter"),
    ],
)
def test_a_broken_answer_is_a_message(place, text, message):
    path = place / HEADS.file_name
    path.write_text(text)
    right, said = judge(HEADS, path)
    assert not right and message in said and "\n" not in said


def test_an_endless_loop_is_stopped(place):
    text = "import time\nwhile True: time.sleep(0.01)"
    assert graded(place, text, 5) == (False, "still computing after 5 s: is there an endless loop?")


def test_a_busy_machine_is_no_endless_loop(place):
    """What reads runs gets longer than an answer that computes, and is not blamed when it is stopped."""
    (run,) = [exercise for exercise in chapter("08").exercises if exercise.name == "two_equal_one"]
    (place / run.file_name).write_text(run.content)
    assert grade(run, place / run.file_name, 0.01).message == "still computing after 0.01 s: is the machine busy?"
    assert "one: not filled in yet" in grade(run, place / run.file_name).message


def test_stub_start_check_and_progress(place, capsys, monkeypatch):
    main(["learn", "start", HEADS.id])
    path = place / "learn/05_architecture" / HEADS.file_name
    assert f"written learn/05_architecture/{HEADS.file_name}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["learn", "check", HEADS.id])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert f"{HEADS.id} wrong" in out and "not written yet" in out
    path.write_text(RIGHT)
    main(["learn", "start", HEADS.id])
    assert f"kept    learn/05_architecture/{HEADS.file_name}" in capsys.readouterr().out
    assert path.read_text() == RIGHT
    main(["learn", "check", HEADS.id])
    assert capsys.readouterr().out == f"{HEADS.id} right: {HEADS.title}\n"
    kept = json.loads((place / "kept/learn.json").read_text())
    assert list(kept["passed"]) == [HEADS.id] and kept["tries"] == {HEADS.id: 2}
    main(["learn"])
    out = capsys.readouterr().out
    assert "●" in out and "next: 01.1" in out
    path.write_text("x = 1")  # what was solved stays solved
    monkeypatch.setattr("lightning_gpt.learning.grading.grade", lambda of, path: Grade(*judge(of, path)))
    with pytest.raises(SystemExit):
        main(["learn", "check", HEADS.id, "--work", "learn/05_architecture"])
    assert list(load_progress().passed) == [HEADS.id]


def test_hints_go_one_further(place, capsys):
    for count in (1, 2, 2):
        main(["learn", "hint", HEADS.id])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == count and lines[-1].startswith(f"hint {count} of 2: ")
    with pytest.raises(SystemExit):
        main(["learn", "hint", "05"])
    assert "hints are for one exercise" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["{", "[]", '{"passed": {"05.1": 3}}', '{"hints": 1}'])
def test_a_damaged_file_is_set_aside(place, damage, capsys):
    path = progress_file()
    path.parent.mkdir()
    path.write_text(damage)
    assert load_progress().passed == {}
    assert path.with_name("learn.json.damaged").read_text() == damage and not path.exists()
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "what, message",
    [
        ("15", "chapter '15' is none of 01 to 13"),
        ("05.99", "exercise 05.99 does not exist: chapter 05 has 05.1, 05.2"),
        ("milestone", "did you mean milestones?"),
    ],
)
def test_what_does_not_exist_is_said(place, what, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["learn", "check", what])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_started_is_said(place, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["learn", "check", HEADS.id.removeprefix("0")])
    assert stop.value.code == 1
    assert f"lightning-gpt learn start {HEADS.id}" in capsys.readouterr().out
    assert load_progress().tries == {}


def test_where_progress_lies_without_a_setting(monkeypatch, tmp_path):
    monkeypatch.delenv("LIGHTNING_GPT_LEARN", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert progress_file() == tmp_path / ".local/share/lightning_gpt/learn.json"


@pytest.mark.parametrize("of", EVERY, ids=lambda of: of.id)
def test_an_exercise_is_complete(of: Exercise, tmp_path):
    assert 1 <= of.stars <= 3 and len(of.hints) >= 2 and of.title and of.text
    assert chosen(of.id)[1] == [of]
    if of.kind == "component":
        compile(of.content, of.file_name, "exec")
        assert "NotImplementedError" in of.stub
        assert of.solution is not None
    assert f"learn check {of.id}" in of.content
    assert max(map(len, of.content.splitlines())) <= 120


def test_every_chapter_has_exercises_in_order():
    for one in chapters():
        least = 4 if "01" <= one.number <= "05" else 2
        assert len(one.exercises) >= least, one.number
        assert [exercise.id for exercise in one.exercises] == [
            f"{one.number}.{k}" for k in range(1, len(one.exercises) + 1)
        ]
        names = [exercise.file_name for exercise in one.exercises]
        assert len(set(names)) == len(names) or one.number == "milestones"


def test_stubs_say_that_they_are_not_written(place):
    """Every component's stub imports, and its check fails on it in words."""
    from lightning_gpt.learning.folder import start

    for exercise in EVERY:
        start(exercise, place / exercise.chapter)
        right, message = judge(exercise, place / exercise.chapter / exercise.file_name)
        assert not right, exercise.id
        assert "not written yet" in message or exercise.kind != "component", (exercise.id, message)
        assert message and "\n" not in message and "Error:" not in message, (exercise.id, message)
    assert os.environ["LIGHTNING_GPT_LEARN"]
