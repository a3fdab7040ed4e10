"""The capstone: its page types what its chain types, its measure is SQuAD's, its report follows from its results."""

import json
import re
import sys
from pathlib import Path

import pytest
from test_house import check_command
from test_pages import blocks, split

FOLDER = Path(__file__).parents[2] / "experiments" / "capstone"


@pytest.fixture(scope="module")
def capstone():
    """Its scripts, as Python finds them when one is started."""
    sys.path.insert(0, str(FOLDER))
    import answers
    import capstone
    import report
    import retrieval
    import under_load

    yield {"answers": answers, "chain": capstone, "report": report, "retrieval": retrieval, "under_load": under_load}
    sys.path.remove(str(FOLDER))


def test_the_page_types_what_the_chain_types(capstone):
    chain = [command for stage in capstone["chain"].STAGES for command in stage.typed(short=False)]
    page = [command for block in blocks((FOLDER / "README.md").read_text(encoding="utf-8")) for command in split(block)]
    assert [command for command in page if command in chain] == chain


def test_the_short_chain_is_understood_and_touches_nothing_of_the_whole_one(
    capstone, clean_process, monkeypatch, capsys
):
    monkeypatch.chdir(FOLDER.parents[1])
    stages = capstone["chain"].STAGES
    whole = {word for stage in stages for command in stage.typed(False) for word in command.split()}
    own = {word for word in whole if re.match(r"(runs|models|data/documentation)/?\S*capstone|\S*/pairs$", word)}
    for stage in stages:
        for command in stage.typed(short=True):
            assert not set(command.split()) & (own - {"capstone_base"}), command
            check_command(command)
            if " fit " in command:  # without it, the configuration's own name would be the whole chain's run
                assert "--run.name capstone_short_" in command


def test_quality_is_squads_f1(capstone):
    from lm_eval.tasks.qasper.metrics import f1_abstractive, normalize_answer

    answers = capstone["answers"]
    pairs = [
        ("Return the current process id.", "Return the id of the process."),
        ("the cat sat on a mat", "A cat sat"),
        ("Nothing in common", "at all"),
        ("An exact, answer!", "exact answer"),
        ("twice twice word", "twice word word"),
    ]
    for said, right in pairs:
        assert answers.f1(said, right) == pytest.approx(f1_abstractive([said], [right]))
        assert (answers.words(said) == answers.words(right)) == (normalize_answer(said) == normalize_answer(right))
    absent = {"kind": "absent", "messages": [{"content": answers.ABSENT}]}
    told = {"kind": "describe", "messages": [{"content": "Open a door."}]}
    assert answers.quality(answers.ABSENT.upper(), absent) == 1 and answers.quality("It opens a door.", absent) == 0
    assert answers.quality(answers.ABSENT, told) == 0 and answers.quality("Open the door", told) == 1


def test_passages_are_found_by_name_and_by_words(capstone, tmp_path):
    known = {
        "os.path.join": "`os.path.join(path, *paths)`: Join one or more path segments intelligently.",
        "str.join": "`str.join(iterable)`: Return a string which is the concatenation of the strings in `iterable`.",
        "shutil.copytree": "`shutil.copytree(src, dst)`: Recursively copy an entire directory tree rooted at `src`.",
        "math.sqrt": "`math.sqrt(x)`: Return the square root of `x`.",
    }
    path = tmp_path / "passages.jsonl"
    path.write_text("\n".join(json.dumps({"name": n, "passage": p}) for n, p in known.items()))
    retrieval = capstone["retrieval"].Retrieval(path)
    for question, name in (
        ("What does `os.path.join` do?", "os.path.join"),
        ("what does os.path.join do", "os.path.join"),
        ("How do I copy a whole directory tree?", "shutil.copytree"),
        ("square root", "math.sqrt"),
    ):
        assert retrieval.find(question, 1)[0]["name"] == name
    assert len(retrieval.find("join", 3)) == 3
    with pytest.raises(SystemExit, match=r"missing\.jsonl is not there"):
        capstone["retrieval"].Retrieval(tmp_path / "missing.jsonl")


def test_the_highest_rate_is_before_the_first_that_fails(capstone):
    steps = [{"rate_sent": rate, "holds": holds} for rate, holds in ((1, True), (2, True), (3, False), (4, True))]
    assert capstone["under_load"].highest(steps)["rate_sent"] == 2
    assert capstone["under_load"].highest(steps[2:]) is None


def test_the_report_follows_from_the_results(capstone):
    found = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    written = (FOLDER / "report.md").read_text(encoding="utf-8")
    assert capstone["report"].text(found, (FOLDER / "dashboard.png").exists()) == written
    for what, _, _, met in capstone["report"].bar(found):
        row = next(line for line in written.splitlines() if line.startswith(f"| {what} |"))
        assert row.endswith("| yes |" if met else "| **no** |")


def test_a_ratio_of_qualities_and_its_interval(capstone):
    value, low, high = capstone["report"].ratio([0.4, 0.8] * 200, [0.5, 1.0] * 200)
    assert value == pytest.approx(0.8) == pytest.approx(low) == pytest.approx(high)  # question by question the same
    value, low, high = capstone["report"].ratio([1.0, 0.0] * 200, [0.0, 1.0] * 200)
    assert value == pytest.approx(1) and low < 1 < high
