"""The assistant under load: which rate holds, and what a killed worker costs; with the dashboard of that time.

    python experiments/capstone/under_load.py deploy/serve/documentation.yaml --out runs/capstone/service

Starts the service, climbs stairs of requests a second until the 99th percentile of the whole answers passes 500 ms,
asks at `--share` of the highest rate that held, and kills the working worker with SIGKILL halfway. With a `prometheus`
on the path one scrapes the service, and the Grafana dashboard of that time is drawn (deploy/serve/grafana/preview.py).
Writes stairs/ and steady/ (what `lightning-gpt load` writes), dashboard.png and service.json.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from lightning_gpt.serving.process import ServiceProcess, free_port

DEPLOY = Path("deploy/serve")
ASKED = Path("data/documentation/asked.jsonl")
P99_MS = 500.0
STEP = ("rate_sent", "requests", "ok", "latency_ms", "holds")


class Watch:
    """A Prometheus with the deployment's rules that scrapes the service every second, where it is installed."""

    def __init__(self, folder: Path, port: int) -> None:
        self.process, self.port = None, free_port()
        if shutil.which("prometheus") is None:
            print("no prometheus is installed: the dashboard is not drawn", file=sys.stderr)
            return
        folder.mkdir(parents=True, exist_ok=True)
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "5s"}
        target = {"static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        config["scrape_configs"] = [{"job_name": "lightning-gpt", **target}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        for name in config["rule_files"]:
            shutil.copy(DEPLOY / "prometheus" / name, folder / name)
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        with (folder / "prometheus.txt").open("wb") as output:
            listen = f"--web.listen-address=127.0.0.1:{self.port}"
            self.process = subprocess.Popen([*command, listen], stdout=output, stderr=subprocess.STDOUT)

    def draw(self, picture: Path, seconds: float) -> None:
        """The dashboard of the last so many seconds."""
        if self.process is not None:
            ask = ["--prometheus", f"http://127.0.0.1:{self.port}", "--minutes", f"{seconds / 60:.2f}", "--scrape", "1"]
            preview = [sys.executable, DEPLOY / "grafana" / "preview.py", *ask, "--output", picture]
            subprocess.run(list(map(str, preview)), check=True)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


def load(url: str, out: Path, *options: object) -> subprocess.Popen:
    """`lightning-gpt load` with the questions of asked.jsonl, begun."""
    (out / "results.json").unlink(missing_ok=True)  # an older one would be taken for this one's where it fails
    asked = ["--endpoint", "chat", "--prompts", ASKED, "--max_tokens", 64, "--slo_ms", P99_MS, "--output", out]
    command = [sys.executable, "-m", "lightning_gpt", "load", url, *asked, *options]
    return subprocess.Popen(list(map(str, command)))


def finished(process: subprocess.Popen) -> None:
    """Waits for a load.

    Raises:
        SystemExit: it failed.
    """
    if process.wait():
        raise SystemExit(f"the load ended with {process.returncode}: what it said is above")


def highest(steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last of the stairs before the first that does not hold."""
    held = None
    for step in steps:
        if not step["holds"]:
            break
        held = step
    return held


def worker(service: ServiceProcess) -> psutil.Process:
    """The child that has computed most."""
    return max(psutil.Process(service.process.pid).children(), key=lambda one: sum(one.cpu_times()[:2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="service.yaml")
    parser.add_argument("--model", help="directory to serve in place of the configuration's")
    parser.add_argument("--rates", default="0.5,1,1.5,2,3,4,6", help="the stairs, requests a second")
    parser.add_argument("--step_s", type=int, default=20, help="seconds on each of them")
    parser.add_argument("--share", type=float, default=0.6, help="of the highest rate that held, for the long run")
    parser.add_argument("--seconds", type=int, default=600, help="of the long run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    settings = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    if arguments.model:
        settings["models"][0]["versions"][0]["path"] = arguments.model
    arguments.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with ServiceProcess(arguments.out / "log", settings) as service:
        watch = Watch(arguments.out / "prometheus", service.port)
        try:
            finished(load(service.url, arguments.out / "warm", "--rate", 1, "--duration", 10))
            steps = ",".join(f"{rate}:{arguments.step_s}" for rate in arguments.rates.split(","))
            finished(load(service.url, arguments.out / "stairs", "--steps", steps))
            stairs = json.loads((arguments.out / "stairs" / "results.json").read_text())
            held = highest(stairs["steps"])
            if held is None:
                print("not even the lowest rate holds; the long run goes below it", file=sys.stderr)
            rate = round(float(held["rate_sent"] if held else arguments.rates.split(",")[0]) * arguments.share, 2)
            steady = load(service.url, arguments.out / "steady", "--rate", rate, "--duration", arguments.seconds)
            time.sleep(arguments.seconds / 2)
            worker(service).send_signal(signal.SIGKILL)
            finished(steady)
            watch.draw(arguments.out / "dashboard.png", min(time.monotonic() - begun, 3600))
        finally:
            watch.stop()
    result = json.loads((arguments.out / "steady" / "results.json").read_text())
    found = {
        "rate": rate,
        "highest": held["rate_sent"] if held else None,
        "stairs": [
            {name: step[name] for name in ("rate_sent", "requests", "ok", "latency_ms", "holds")}
            for step in stairs["steps"]
        ],
        "killed": 1,
        "hardware": result["hardware"],
        **{name: result["totals"][name] for name in ("requests", "ok", "availability", "latency_ms", "tokens")},
    }
    (arguments.out / "service.json").write_text(json.dumps(found, indent=1) + "\n")
    latency = found["latency_ms"]
    print(
        f"{rate} requests/s for {arguments.seconds} s, a worker killed halfway: {found['ok']} of {found['requests']} "
        f"answered, availability {found['availability']:.4%}, P50 {latency['p50']:.0f} ms, P99 {latency['p99']:.0f} ms"
    )


if __name__ == "__main__":
    main()
