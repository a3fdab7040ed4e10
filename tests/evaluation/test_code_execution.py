"""Programs that a model wrote: what they may do, and what becomes of them."""

import os
import time
from itertools import combinations
from pathlib import Path

import pytest

from lightning_gpt.evaluation.code_execution import fence, run_program
from lightning_gpt.evaluation.program_scores import pass_at_k, program_of, score_programs


@pytest.mark.parametrize(
    ("program", "passed", "reason"),
    [
        ("assert sum([1, 2]) == 3", True, "passed"),
        ("from typing import List\nimport math, re, collections, heapq, itertools\nassert math.pi > 3", True, "passed"),
        ("open('x.txt', 'w').write('a')\nassert open('x.txt').read() == 'a'", True, "passed"),
        ("assert 1 == 2", False, "AssertionError"),
        ("def f(:", False, "SyntaxError"),
        ("import sys\nsys.exit(0)", False, "left before its end"),
        ("import os\nos._exit(0)", False, "left before its end"),
        ("x = bytearray(8 << 30)", False, "MemoryError"),
        ("import sys\nwhile True: sys.stderr.write('x' * 9999)", False, ""),
        ("import os\nos.fork()", False, "not allowed here: os.fork"),
        ("import subprocess\nsubprocess.run(['true'])", False, "not allowed here: subprocess"),
        ("import socket\nsocket.socket()", False, "not allowed here: socket"),
        ("import os\nos.remove('x')", False, "not allowed here: os.remove"),
        ("import os\nos.listdir('/')", False, "not allowed here"),
        ("open('/etc/passwd').read()", False, "not allowed here: opening"),
        ("import sys\nprint(open(sys.path[0] + '/../../escape', 'w'))", False, "not allowed here: opening"),
    ],
)
def test_programs_are_fenced_in(program, passed, reason):
    outcome = run_program(program, seconds=10.0)
    assert outcome.passed == passed and reason in outcome.reason, outcome


def test_files_outside_are_not_written(tmp_path):
    victim = tmp_path / "victim"
    outcome = run_program(f"open({str(victim)!r}, 'w').write('here')", seconds=10.0)
    assert not outcome.passed and "not allowed here: opening" in outcome.reason and not victim.exists()


def test_an_endless_program_is_stopped_with_its_children():
    began = time.monotonic()
    # the C function behind subprocess has no audit event: a child in a session of its own, which outlives its parent
    # unless something takes it along
    program = (
        "import _posixsubprocess, os, sys\n"
        "sleep = [b'/bin/sleep', b'/usr/bin/sleep'][os.path.exists('/usr/bin/sleep')]\n"
        "r, w = os.pipe()\n"
        "_posixsubprocess.fork_exec([sleep, b'4321'], [sleep], True, (w,), None, None, -1, -1, -1, -1, -1, -1, r, w,\n"
        "                           True, True, -1, None, None, -1, -1, None, True)\n"
        "while True: pass\n"
    )
    outcome = run_program(program, seconds=2.0)
    assert outcome.reason in ("timed out", "") or "Error" in outcome.reason
    assert time.monotonic() - began < 30
    if "processes" in fence().name:
        deadline = time.monotonic() + 10
        while (left := sleepers()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left


def sleepers() -> list[str]:
    """Processes that run `sleep 4321`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().endswith(b"\0" + b"4321\0"):
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_the_fence_says_what_it_is():
    assert fence().name in (
        "namespaces for network and processes",
        "a namespace for the network",
        "an audit hook that refuses sockets",
    )
    assert bool(fence().command) == ("namespace" in fence().name)
    if fence().command:  # without a network, even a program that finds a way around Python's refusal reaches nobody
        assert os.path.basename(fence().command[0]) == "unshare"


def test_pass_at_k_is_the_share_of_choices():
    for n, c, k in ((5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2)):
        outcomes = [True] * c + [False] * (n - c)
        drawn = [any(outcomes[i] for i in choice) for choice in combinations(range(n), k)]
        assert pass_at_k(n, c, k) == pytest.approx(sum(drawn) / len(drawn))


def test_what_a_model_writes_becomes_a_program():
    doc = {"prompt": "def f(x):\n", "test": "def check(g):\n    assert g(2) == 3", "entry_point": "f"}
    right, wrong = "    return x + 1\n", "    return x\n"
    for text, chat in ((right, False), (right + "```\nThis adds one.", True)):
        assert run_program(program_of("humaneval", doc, text, chat)).passed
    samples = [{"doc": doc, "resps": [[right, wrong, wrong, right, wrong]]}]
    values, further = score_programs("humaneval", samples, chat=False)
    assert values == [pytest.approx(0.4)] and further["pass@5"] == 1.0
    assert further["outcomes"] == {"AssertionError": 3, "passed": 2} and further["fence"] == fence().name
    doc = {"test_setup_code": "import math", "test_list": ["assert two() == 2", "assert math.pi"]}
    said = "Here it is:\n```python\ndef two():\n    return 2\n```\nIt returns two."
    assert run_program(program_of("mbpp", doc, said, True)).passed
    assert not run_program(program_of("mbpp", doc, said, False)).passed
