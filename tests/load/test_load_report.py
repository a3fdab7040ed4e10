import json
import re

import pytest

from lightning_gpt.load.aims import Aims
from lightning_gpt.load.recorder import Histogram
from lightning_gpt.load.report import write_report
from lightning_gpt.load.runner import run_load
from lightning_gpt.load.settings import LoadSettings
from lightning_gpt.load.tables import text


def test_a_report_is_whole_and_says_what_was_found(server, whole_answer, tmp_path):
    refusal = whole_answer(b'{"error": {"code": "<queue_full>"}}', "429 Too Many Requests")
    server.behave = lambda number, headers, body: refusal if number % 10 == 0 else None
    settings = LoadSettings(server.url, steps="30:1,60:1", stream=0.5, api_keys=("secret-1", "secret-2"), check=False)
    found = run_load(settings)
    written = write_report(found, tmp_path / "new" / "place", "lightning-gpt load X", ["min_rate: too few"])
    assert [path.name for path in written] == ["results.json", "report.html", "report.png"]
    assert sorted(path.name for path in written[0].parent.iterdir()) == sorted(path.name for path in written)
    content = json.loads(written[0].read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert content["command"] == "lightning-gpt load X" and content["missed_aims"] == ["min_rate: too few"]
    assert content["totals"]["requests"] == found.totals["requests"] and content["settings"]["steps"] == "30:1,60:1"
    lengths = {len(column) for name, column in content["series"].items() if name != "errors_by_kind"}
    assert len(lengths) == 1 and content["hardware"]["cpu"] and len(content["steps"]) == 2
    assert content["totals"]["itl_ms"]["p50"] > 0 and content["totals"]["ttft_ms"]["p99"] > 0
    assert written[2].read_bytes().startswith(b"\x89PNG") and written[2].stat().st_size > 20_000
    page = written[1].read_text()
    assert "<svg" in page and "429 &lt;queue_full&gt;" in page and "min_rate: too few" in page
    assert not re.search(r'(src|href)="(?!#)', page.replace("xlink:href", "")), "needs something beside it"
    for path in written[:2]:
        assert "secret" not in path.read_text()
    assert "429 <queue_full>" in text(found) and "time to first token" in text(found)


def test_a_report_of_failures_alone_is_drawn(server, tmp_path):
    server.behave = lambda number, headers, body: "close"
    found = run_load(LoadSettings(server.url, requests=3, model="tiny"))
    content = json.loads(write_report(found, tmp_path)[0].read_text())
    assert content["totals"]["latency_ms"]["p99"] is None and content["totals"]["ok"] == 0


def test_aims_that_do_not_hold_are_named():
    totals = {"error_rate": 0.01, "latency_ms": {"p99": 120.0}, "rate_ok": 90.0}
    assert Aims(0.01, 120, 90).missed(totals) == [] == Aims().missed(totals)
    missed = Aims(0.001, 100, 100).missed(totals)
    assert [one.split(":")[0] for one in missed] == ["max_error_rate", "max_p99_ms", "min_rate"]
    nothing = {"error_rate": float("nan"), "latency_ms": {"p99": float("nan")}, "rate_ok": 0.0}
    assert len(Aims(0.1, 100, 1).missed(nothing)) == 3


def test_histograms_know_quantiles_to_their_bins_width():
    histogram = Histogram()
    for number in range(1, 10_001):
        histogram.add(number / 1e4)
    for share in (0.01, 0.5, 0.99):
        assert abs(histogram.quantile(share) / share - 1) < 0.02
    assert histogram.quantile(1) == histogram.max_s == 1
    for odd in (0.0, -1e-9, 1e-7, 1e4):
        histogram.add(odd)
    assert histogram.total == 10_004 and histogram.max_s == 1e4
    assert Histogram().quantile(0.5) != Histogram().quantile(0.5)
