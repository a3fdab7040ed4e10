import json
import os
import random
import signal
import subprocess
import sys

import pytest

from lightning_gpt.serving.quotas import DAY_S, QuotaLedger


@pytest.fixture
def wall(clock):
    clock.now = 20_000.0 * DAY_S + 3600
    return clock


def test_a_day_holds_its_limit_and_the_next_begins_anew(wall):
    ledger = QuotaLedger(None, wall)
    assert ledger.check("a", 100, 100) == 0.0
    assert ledger.check("a", None, 10**9) == 0.0
    ledger.charge("a", 90)
    assert ledger.check("a", 100, 11) == pytest.approx(23 * 3600)
    assert ledger.check("a", 100, 10) == 0.0
    assert ledger.check("b", 100, 100) == 0.0
    day = ledger.charge("a", 10)
    wall.now += DAY_S
    assert ledger.used("a") == 0
    ledger.give_back("a", 10, day)
    ledger.charge("a", 5)
    assert ledger.used("a") == 5
    wall.now -= 2 * 3600  # a clock that is set back over midnight gives nothing twice
    assert ledger.used("a") == 5
    wall.now -= 30 * DAY_S
    assert ledger.used("a") == 0


def test_counts_survive_restarts_and_old_days_do_not(wall, tmp_path):
    path, draw, counts = tmp_path / "quota.json", random.Random(0), {}
    for _ in range(20):
        ledger = QuotaLedger(path, wall)
        assert ledger.warning is None
        for _ in range(20):
            name, tokens = draw.choice("abc"), draw.randint(1, 50)
            counts[name] = counts.get(name, 0) + tokens
            ledger.charge(name, tokens)
            wall.now += draw.random()
        assert ledger.flush(now=True) is None
    assert {name: QuotaLedger(path, wall).used(name) for name in counts} == counts
    wall.now += DAY_S
    ledger = QuotaLedger(path, wall)
    assert ledger.used("a") == 0
    ledger.charge("z", 1)
    ledger.flush()
    assert list(json.loads(path.read_text())["used"]) == ["z"]
    assert os.listdir(tmp_path) == ["quota.json"]


def test_it_writes_seldom_and_only_news(wall, tmp_path):
    path = tmp_path / "quota.json"
    ledger = QuotaLedger(path, wall, every_s=2.0)
    ledger.flush()
    assert not path.exists()
    ledger.charge("a", 1)
    ledger.flush()
    written = path.stat().st_ino
    ledger.charge("a", 1)
    wall.now += 1.9
    ledger.flush()
    assert path.stat().st_ino == written
    wall.now += 0.2
    ledger.flush()
    assert json.loads(path.read_text())["used"] == {"a": 2}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b'{"day": 3, "used": {}}', b'{"day": "2024-10-04", "used": {"a": -1}}', b"[" * 10**5],
)
def test_a_damaged_file_is_set_aside(wall, tmp_path, content):
    path = tmp_path / "quota.json"
    path.write_bytes(content)
    ledger = QuotaLedger(path, wall)
    assert "damaged" in ledger.warning
    assert (tmp_path / "quota.json.damaged").read_bytes() == content
    ledger.charge("a", 3)
    assert ledger.flush(now=True) is None
    assert QuotaLedger(path, wall).used("a") == 3


def test_a_place_that_cannot_be_written_is_told_and_tried_again(wall, tmp_path):
    ledger = QuotaLedger(tmp_path / "gone" / "quota.json", wall)
    ledger.charge("a", 3)
    assert "cannot be written" in ledger.flush()
    (tmp_path / "gone").mkdir()
    assert ledger.flush(now=True) is None
    assert QuotaLedger(tmp_path / "gone" / "quota.json", wall).used("a") == 3


def test_a_kill_loses_only_what_was_not_flushed(tmp_path):
    path = tmp_path / "quota.json"
    code = (
        "import sys; from pathlib import Path; from lightning_gpt.serving.quotas import QuotaLedger\n"
        "ledger = QuotaLedger(Path(sys.argv[1]))\n"
        "while True:\n"
        "    ledger.charge('a', 1); ledger.flush(now=True); print(ledger.used('a'), flush=True)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    for _ in range(200):
        flushed = int(worker.stdout.readline())
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    ledger = QuotaLedger(path)
    assert ledger.warning is None
    assert ledger.used("a") >= flushed
