"""deploy/train/: every file read by the tool that it is for, and every launcher with two real processes on CPU."""

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.hub import load_checkpoint

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "train"
SCRIPTS = sorted([*DEPLOY.glob("*.sh"), *DEPLOY.glob("*.sbatch")])
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
SBATCH = {
    *("account", "array", "begin", "chdir", "comment", "constraint", "cores-per-socket", "cpus-per-gpu"),
    *("cpus-per-task", "deadline", "dependency", "distribution", "error", "exclude", "exclusive", "export"),
    *("gpu-bind", "gpu-freq", "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres", "hint", "hold"),
    *("input", "job-name", "licenses", "mail-type", "mail-user", "mem", "mem-bind", "mem-per-cpu", "mem-per-gpu"),
    *("network", "nice", "no-requeue", "nodelist", "nodes", "ntasks", "ntasks-per-core", "ntasks-per-gpu"),
    *("ntasks-per-node", "ntasks-per-socket", "open-mode", "output", "overcommit", "partition", "prefer", "priority"),
    *("profile", "qos", "requeue", "reservation", "signal", "spread-job", "switches", "threads-per-core", "time"),
    *("time-min", "tmp", "uid", "wait", "wait-all-nodes", "wckey", "wrap"),
}
"""Long options of sbatch, as its manual lists them."""
SRUN = """#!/usr/bin/env bash
# Stands for SLURM's srun: starts the tasks on this machine and ends with the worst status.
while [[ $1 == --* ]]; do
    [[ $1 =~ ^--(kill-on-bad-exit|cpus-per-task)=[0-9]+$ ]] || { echo "srun: no option $1" >&2; exit 3; }
    shift
done
worst=0
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" &
done
for task in $(jobs -p); do wait "$task" || worst=$?; done
exit "$worst"
"""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_shells_read_the_scripts(script):
    assert len(SCRIPTS) == 3
    subprocess.run(["bash", "-n", script], check=True)
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "shellcheck is missing: pip install 'lightning_gpt[test]'"
    done = subprocess.run([found, "--shell=bash", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    if script.suffix == ".sh":
        assert os.access(script, os.X_OK), f"chmod +x {name(script)}"


def test_sbatch_lines_are_options_of_sbatch():
    lines = re.findall(r"^#SBATCH (.*)$", (DEPLOY / "slurm.sbatch").read_text(), re.MULTILINE)
    options = dict(re.fullmatch(r"--([\w-]+)(?:=(\S+))?", line).groups() for line in lines)
    assert options.keys() <= SBATCH
    assert re.fullmatch(r"USR1@\d+", options["signal"])  # to the tasks, not to the script ("B:")
    assert re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", options["time"])
    assert "requeue" in options and options["open-mode"] == "append"
    assert options["gpus-per-node"] == options["ntasks-per-node"]
    assert options["job-name"] not in ("bash", "interactive")  # by which Lightning knows a shell within SLURM
    text = (DEPLOY / "slurm.sbatch").read_text()
    first = next(line for line in text.splitlines() if line and not line.startswith("#"))
    assert text.index("#SBATCH --output") < text.index(first)  # sbatch reads no further


def known(content, kind: str, where: str) -> None:
    """Walks an object of Kubernetes' interface: every field exists, required ones are there, types are right."""
    listed = re.fullmatch(r"list\[(.+)\]", kind)
    mapped = re.fullmatch(r"dict\(str, (.+)\)|dict\[str, (.+)\]", kind)
    if listed:
        assert isinstance(content, list), where
        for number, one in enumerate(content):
            known(one, listed[1], f"{where}[{number}]")
    elif mapped:
        for key, one in content.items():
            assert isinstance(key, str)
            known(one, mapped[1] or mapped[2], f"{where}.{key}")
    elif kind in ("str", "int", "bool", "float"):
        numbers = {"str": str, "int": int, "bool": bool, "float": int | float}
        quantity = kind == "str" and re.search(r"(limits|requests)\.[\w./-]+$", where)  # these may be bare numbers
        assert isinstance(content, int | str if quantity else numbers[kind]), f"{where}: {content!r} is no {kind}"
    elif kind not in ("object", "datetime"):
        modules = [importlib.import_module(one) for one in ("kubeflow.training.models", "kubernetes.client.models")]
        model = next(getattr(module, kind) for module in modules if hasattr(module, kind))
        fields = {json_name: python for python, json_name in model.attribute_map.items()}
        assert isinstance(content, dict), where
        for key, one in content.items():
            assert key in fields, f"{where}: {kind} has no {key}"
            known(one, model.openapi_types[fields[key]], f"{where}.{key}")
        model(**{fields[key]: one for key, one in content.items()})  # refuses what is required and missing


KINDS = {"PyTorchJob": "KubeflowOrgV1PyTorchJob", "PersistentVolumeClaim": "V1PersistentVolumeClaim"}


@pytest.mark.parametrize("path", KUBERNETES, ids=name)
def test_kubernetes_knows_every_field(path):
    (content,) = yaml.safe_load_all(path.read_text())
    if content["kind"] != "Kustomization":
        known(content, KINDS[content["kind"]], path.stem)
        return
    assert content["apiVersion"] == "kustomize.config.k8s.io/v1beta1"
    assert {path.parent / one for one in content["resources"]} == {*KUBERNETES} - {path}
    if shutil.which("kubectl"):
        done = subprocess.run(["kubectl", "kustomize", path.parent], capture_output=True, text=True, check=True)
        for one in yaml.safe_load_all(done.stdout):
            known(one, KINDS[one["kind"]], one["kind"])
            assert one["metadata"]["labels"]["app.kubernetes.io/name"] == "lightning-gpt"


def test_the_job_hangs_together():
    job = yaml.safe_load((DEPLOY / "kubernetes" / "pytorchjob.yaml").read_text())["spec"]
    storage = yaml.safe_load((DEPLOY / "kubernetes" / "storage.yaml").read_text())
    worker = job["pytorchReplicaSpecs"]["Worker"]
    assert job["elasticPolicy"]["minReplicas"] <= worker["replicas"] <= job["elasticPolicy"]["maxReplicas"]
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"  # the operator looks for this name
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == storage["metadata"]["name"]
    assert pod["terminationGracePeriodSeconds"] > 25 + 30
    for word in [*container["command"], *container["args"]]:
        if word.startswith(("configs/", "deploy/")):
            assert (ROOT / word).exists(), word
    lines = (DEPLOY / "Dockerfile").read_text()
    for source in re.findall(r"^COPY (.+) \S+$", lines, re.MULTILINE):
        assert all((ROOT / one).exists() for one in source.split()), source


def environment(**more: object) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "TORCH"))}
    own = {"PYTHON": sys.executable, "OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return inherited | {key: str(value) for key, value in {**own, "PYTHONPATH": paths, **more}.items()}


def launch(command: list, cwd: Path, timeout: float = 300, **more: object) -> str:
    """Runs a launcher to its end; what it printed. All that it has started is killed when it takes too long."""
    words = [str(word) for word in command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(words, cwd=cwd, env=environment(**more), start_new_session=True, **pipes)
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"no end in {timeout} s:\n{process.communicate()[0][-3000:]}") from None
    assert process.returncode == 0, said[-3000:]
    return said


def check_run(run: Path, steps: int) -> None:
    """Two processes have trained together: twice the tokens of one, and a checkpoint of the last step."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "progress/tokens" in row]
    assert [row["progress/tokens"] for row in rows] == [2 * 4 * 16 * step for step in range(1, steps + 1)]
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")[0].config.n_layer == 2
    assert not list(run.parent.glob("version_[1-9]*"))


def fit_words(recipe: Path, trainer: str, steps: int) -> list:
    words = ["-c", recipe, "-c", ROOT / "configs" / "trainer" / f"{trainer}.yaml", "--trainer.accelerator", "cpu"]
    return [*words, "--trainer.precision", "32-true", "--trainer.max_steps", steps, "--run.dir", "runs"]


def test_torchrun_starts_two_processes(recipe, tmp_path):
    script = DEPLOY / "torchrun.sh"
    launch([script, *fit_words(recipe, "torchrun", 2)], tmp_path, PER_NODE=2, MAX_RESTARTS=0)
    check_run(tmp_path / "runs" / "tiny" / "version_0", 2)


@pytest.fixture
def slurm_job(tmp_path) -> dict[str, object]:
    """Variables of a job of two tasks on this machine, with an srun."""
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin" / "srun"
    srun.write_text(SRUN)
    srun.chmod(0o755)
    job = {"SLURM_JOB_ID": 4711, "SLURM_JOB_NAME": "lightning-gpt", "SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2}
    job |= {"SLURM_NNODES": 1, "SLURM_JOB_NUM_NODES": 1, "SLURM_NODELIST": "localhost", "SLURM_CPUS_PER_TASK": 1}
    return job | {"PATH": f"{srun.parent}:{os.environ['PATH']}", "MASTER_ADDR": "127.0.0.1"}


def test_slurm_starts_two_tasks(recipe, slurm_job, tmp_path):
    words = ["bash", DEPLOY / "slurm.sbatch", *fit_words(recipe, "slurm", 2)]
    said = launch(words, tmp_path, **slurm_job)
    assert "job 4711 on 1 x 2, start 1" in said and "job 4711 ended with status 0" in said
    check_run(tmp_path / "runs" / "tiny" / "version_0", 2)


@pytest.mark.slow
def test_a_requeued_job_goes_on(recipe, slurm_job, tmp_path):
    for number, steps in enumerate((2, 3)):
        words = ["bash", DEPLOY / "slurm.sbatch", *fit_words(recipe, "slurm", steps)]
        launch(words, tmp_path, **slurm_job, SLURM_RESTART_COUNT=number)
    check_run(tmp_path / "runs" / "tiny" / "version_0", 3)


@pytest.mark.parametrize(
    ("script", "more", "message"),
    [
        ("torchrun.sh", {}, "usage: NODES=2 HEAD=host:29500"),
        ("torchrun.sh", {"NODES": "2"}, "say where they meet, such as HEAD=node0:29500"),
        ("slurm.sbatch", {}, "usage: sbatch"),
        ("worker.sh", {}, "start this by torchrun"),
    ],
)
def test_scripts_say_what_is_missing(script, more, message, tmp_path):
    words = ["bash", DEPLOY / script, *(["-c", "x.yaml"] if more else [])]
    done = subprocess.run(words, cwd=tmp_path, env=environment(**more), capture_output=True, text=True)
    assert done.returncode and message in done.stderr


@pytest.mark.slow
def test_ray_starts_two_workers(recipe, tmp_path):
    words = [sys.executable, DEPLOY / "ray_train.py", "--workers", 2, "--restarts", 0]
    more = {"RAY_DEDUP_LOGS": 0, "RAY_USAGE_STATS_ENABLED": 0, "RAY_TMPDIR": "/tmp/ray_train_test"}
    more |= {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": 240}  # two workers import for a while on a busy machine
    fit = fit_words(recipe, "torchrun", 2)
    fit[-1] = tmp_path / "runs"  # a worker has a directory of its own
    launch([*words, "--storage", tmp_path / "ray", "--", *fit], tmp_path, **more)
    check_run(tmp_path / "runs" / "tiny" / "version_0", 2)
