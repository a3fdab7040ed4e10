"""deploy/serve/grafana/: the dashboard's checker sees mistakes, and a real Prometheus that scrapes the service's
metrics has data for every panel."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from lightning_gpt.serving.metrics import Metrics
from lightning_gpt.serving.record import RequestRecord, WorkerStats

SERVE = Path(__file__).parents[2] / "deploy" / "serve"
DASHBOARD = SERVE / "grafana" / "dashboard.json"


def changed(tmp_path, change) -> subprocess.CompletedProcess:
    """What the checker says of the dashboard after a change."""
    dashboard = json.loads(DASHBOARD.read_text())
    change(dashboard)
    path = tmp_path / "dashboard.json"
    path.write_text(json.dumps(dashboard))
    words = [sys.executable, SERVE / "grafana" / "lint.py", path]
    return subprocess.run(words, capture_output=True, text=True)


def expression(dashboard: dict, title: str, text: str) -> None:
    panel = next(one for one in dashboard["panels"] if one["title"] == title)
    panel["targets"][0]["expr"] = text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: expression(one, "Workers", "sum(lightning_gpt_workers_up)"), "no metric lightning_gpt_workers_up"),
        (lambda one: expression(one, "Workers", "sum(lightning_gpt_worker_up"), "no PromQL"),
        (lambda one: expression(one, "Workers", 'lightning_gpt_worker_up{modell="x"}'), "has no label modell"),
        (lambda one: expression(one, "Workers", "sum by (code) (lightning_gpt_worker_up)"), "has a label code"),
        (lambda one: expression(one, "Workers", 'lightning_gpt_worker_up{model=~"$mode"}'), "no variable mode"),
        (lambda one: one["panels"][3]["gridPos"].update(x=0), "overlaps"),
        (lambda one: one["panels"][3]["gridPos"].update(x=22), "outside of 24 columns"),
        (lambda one: one["panels"][3].update(id=1), "id 1 is taken"),
        (lambda one: one["panels"][3]["datasource"].update(uid="abc"), "data source abc"),
        (lambda one: one["panels"][3].update(targets=[]), "refIds"),
        (lambda one: one["templating"]["list"].pop(0), "named datasource, is needed"),
    ],
)
def test_the_checker_sees_what_is_wrong(change, message, tmp_path):
    done = changed(tmp_path, change)
    assert done.returncode == 1 and message in done.stderr


def test_grafanas_own_types_know_every_field():
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="pip install grafana-foundation-sdk")
    from grafana_foundation_sdk.cog import encoder, plugins

    plugins.register_default_plugins()
    ours = json.loads(DASHBOARD.read_text())
    theirs = json.loads(encoder.JSONEncoder().encode(models.Dashboard.from_json(ours)))
    lost = []

    def compare(mine: object, other: object, where: str) -> None:
        if isinstance(mine, dict) and isinstance(other, dict):
            for key, one in mine.items():
                compare(one, other.get(key), f"{where}.{key}")
        elif isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other):
            for number, one in enumerate(mine):
                compare(one, other[number], f"{where}[{number}]")
        elif mine != other:
            lost.append(where)

    compare(ours, theirs, "")
    # What Grafana reads and its published types leave out.
    plugin = re.compile(
        r"\.annotations\.list\[0\]\.(titleFormat|textFormat|builtIn)|\.templating\.list\[\d\]\.definition"
    )
    assert [one for one in lost if not plugin.fullmatch(one)] == []


def test_every_metric_of_the_service_is_on_the_dashboard():
    from lightning_gpt.serving.metric_table import METRICS

    text = DASHBOARD.read_text()
    assert [one.name for one in METRICS if one.name not in text] == []


class Exporter:
    """The service's metrics with some traffic at /metrics."""

    def __init__(self) -> None:
        self.metrics, self.lock, self.rounds = Metrics(), threading.Lock(), 0
        self.metrics.weight("shakespeare", "v1", 1.0)
        self.metrics.breaker("shakespeare", "v1", "closed")
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words: object) -> None:
                pass

            def do_GET(self) -> None:
                with exporter.lock:
                    exporter.traffic()
                    kind, body = exporter.metrics.text()
                self.send_response(200)
                self.send_header("content-type", kind)
                self.end_headers()
                self.wfile.write(body)

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def traffic(self) -> None:
        """Of one scrape's time."""
        one = "shakespeare", "v1"
        counts = [
            WorkerStats(3, 1, 8, 0.4, 10 * at, 500 * at, 90 * at, 160 * at, at, 99 * at, 50 * at, at / 2, 10**8)
            for at in (self.rounds, self.rounds + 1)
        ]
        self.metrics.worker(*one, "0", counts[1], counts[0] if self.rounds else None, 1.0)
        self.rounds += 1
        for number in range(20):
            now = time.monotonic()
            record = RequestRecord(str(number), "/v1/completions", model=one[0], version=one[1], received=now - 0.1)
            record.dispatched, record.first_token, record.finished = now - 0.09, now - 0.05, now
            record.status, record.completion_tokens, record.finish_reason = 200, 16, "length"
            self.metrics.finished(record)
            self.metrics.cache_missed(*one)
        self.metrics.rejected(one[0], "queue_full")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """Address of a Prometheus that scrapes such metrics each half second, with our rules."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs prometheus: apt-get install prometheus")
    folder, exporter = tmp_path_factory.mktemp("prometheus"), Exporter()
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    config = (SERVE / "prometheus" / "prometheus.yml").read_text()
    found = "dns_sd_configs:\n      - {names: [service, canary], type: A, port: 8000, refresh_interval: 10s}"
    target = f"static_configs: [{{targets: ['127.0.0.1:{exporter.server.server_address[1]}']}}]"
    changes = {
        found: target,
        "scrape_interval: 10s": "scrape_interval: 500ms",
        "scrape_timeout: 5s": "scrape_timeout: 400ms",
    }
    for old, new in {**changes, "evaluation_interval: 15s": "evaluation_interval: 1s"}.items():
        assert old in config, old
        config = config.replace(old, new)
    (folder / "prometheus.yml").write_text(config)
    rules = (SERVE / "prometheus" / "rules.yml").read_text()
    (folder / "rules.yml").write_text(rules.replace("interval: 2m", "interval: 1s"))
    shutil.copy(SERVE / "prometheus" / "alerts.yml", folder)
    words = [
        "prometheus",
        "--config.file=prometheus.yml",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    process = subprocess.Popen([*words, f"--storage.tsdb.path={folder}/data"], cwd=folder)
    address = f"http://127.0.0.1:{port}"

    def known() -> bool:
        with contextlib.suppress(OSError):
            names = [f"{one}:ratio_rate1h" for one in ("http_errors", "slow_requests")]
            names += [f"{one}_budget:ratio" for one in ("availability", "latency")]
            words = urllib.parse.urlencode({"query": " and ".join(f"lightning_gpt:{name}" for name in names)})
            query = f"{address}/api/v1/query?{words}"
            with urllib.request.urlopen(query, timeout=5) as said:
                return bool(json.load(said)["data"]["result"])
        return False

    try:
        deadline = time.monotonic() + 60
        while not known():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(20)
        exporter.server.shutdown()
        exporter.server.server_close()


def preview(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, SERVE / "grafana" / "preview.py", "--scrape", "0.5", "--minutes", "0.25", *words]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


@pytest.mark.slow
def test_every_panel_has_data_and_is_drawn(prometheus, tmp_path):
    done = preview("--prometheus", prometheus, "--check")
    assert done.returncode == 0, done.stderr
    assert "0 expressions without data" in done.stdout
    done = preview("--prometheus", prometheus, "--check", "--set", "model=another")
    assert done.returncode == 1 and "no data: panel 'Requests'" in done.stderr
    png = tmp_path / "dashboard.png"
    done = preview("--prometheus", prometheus, "--output", png, "--width", 1200)
    assert done.returncode == 0, done.stderr
    header = png.read_bytes()[:24]
    width, height = (int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
    assert header[:8] == b"\x89PNG\r\n\x1a\n" and width == 1200 and height > 2000
    done = preview("--prometheus", prometheus, "--output", png, "--row", "Tokens")
    assert done.returncode == 0, done.stderr
    assert int.from_bytes(png.read_bytes()[20:24], "big") < 600


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prometheus", "http://127.0.0.1:9"], "no Prometheus at http://127.0.0.1:9"),
        (["--set", "modell=x"], "the variables are model, version"),
        (["--row", "Nothing"], "there is no such row; there are 'Traffic and objectives'"),
        (["--minutes", "0"], "--minutes and --scrape must be above 0"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_a_line(words, message):
    done = preview(*words)
    assert done.returncode and message in done.stderr and "Traceback" not in done.stderr
