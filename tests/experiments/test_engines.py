import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lightning_gpt.experiments import load_experiment, run_cells
from lightning_gpt.experiments.cell_run import metrics_of, read_state
from lightning_gpt.experiments.engines import LocalEngine, choose_engine, of_several_processes
from lightning_gpt.experiments.live import ExperimentProgress, duration
from lightning_gpt.experiments.plan import plan_cells


@pytest.fixture(autouse=True)
def one_thread_everywhere(monkeypatch):
    """Sums of other numbers of threads differ in the last digit: runs of the test's own process have one too."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def losses(cells):
    return [[row["val/loss"] for row in metrics_of(cell) if "val/loss" in row] for cell in cells]


@pytest.fixture
def two_cells(write_experiment):
    return plan_cells(load_experiment(write_experiment(seeds=[1, 2])))


@pytest.mark.parametrize(
    "name, options",
    [("local", {}), ("ray", {}), ("slurm", {"cluster": "local"})],
    ids=["local", "ray", "slurm-local"],
)
def test_every_engine_runs_the_same_cells(write_experiment, two_cells, capfd, name, options):
    """Two at a time on each engine; submitit's local executor runs the jobs that SLURM would. Losses are those of the
    cells run one after the other."""
    run_cells(two_cells, "val/loss", choose_engine(name, 2, options))
    assert [read_state(cell).status for cell in two_cells] == ["done", "done"]
    assert "2/2" in capfd.readouterr().err
    alone = plan_cells(
        load_experiment(write_experiment(seeds=[1, 2])), runs=two_cells[0].directory.parents[4] / "alone"
    )
    run_cells(alone[:1], "val/loss")
    assert losses(alone[:1]) == losses(two_cells[:1])


@pytest.mark.parametrize("name, options", [("local", {}), ("ray", {}), ("slurm", {"cluster": "local"})])
def test_a_failing_cell_is_named_by_every_engine(write_experiment, name, options):
    (cell,) = plan_cells(load_experiment(write_experiment(variants={"one": {"trainer.max_stepz": 3}})))
    with pytest.raises(RuntimeError, match=r"one seed 1 failed with status 2: .*max_stepz"):
        run_cells([cell], "val/loss", choose_engine(name, 1, options))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("lokal", 1, {}), "engine='lokal' is unknown .did you mean 'local'..: use local, ray, slurm"),
        (("local", 0, {}), "parallel=0 must be at least 1"),
        (("local", 1, {"partition": "gpu"}), "engine_options=.*: local got an unexpected keyword argument 'partition'"),
        (("slurm", 1, {}), "engine=slurm: .*SLURM|sbatch|srun"),
        (("slurm", 1, {"cluster": "lokal"}), "engine=slurm: .*lokal"),
    ],
)
def test_engines_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_engine(*arguments)


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start(path, *arguments):
    """The command in a process of its own, as a user's shell has it."""
    command = [sys.executable, "-m", "lightning_gpt", "experiment", "run", str(path), *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


SLOW = {"budget": {"max_steps": 1200}, "overrides": {"last.every_n_steps": 50, "trainer.log_every_n_steps": 50}}


def test_a_killed_experiment_goes_on_where_it_was(write_experiment, tmp_path):
    """SIGKILL for the command alone: its training run lives on. Called again, the command waits for that run and goes
    on; the results are those of an experiment that was never killed."""
    # Long enough to be still at work when the second command, which starts as slowly as the first, comes to it.
    path = write_experiment(**{**SLOW, "budget": {"max_steps": 8000}})
    (cell,) = plan_cells(load_experiment(path))
    killed = start(path)
    wait_for(lambda: any(row["step"] >= 200 for row in metrics_of(cell)))
    killed.kill()
    killed.communicate()
    assert read_state(cell).status == "running"
    again = start(path)
    _, shown = again.communicate(timeout=300)
    assert again.returncode == 0, shown
    assert "one seed 1 is still being run by a process of an earlier call: waiting for it" in shown
    steps = [row["step"] for row in metrics_of(cell) if "val/loss" in row]
    assert steps == [4000, 8000]
    (found,) = json.loads((path.with_suffix("") / "results.json").read_text())["cells"]
    assert (found["status"], found["attempts"]) == ("done", 2)


def test_a_killed_run_is_continued_from_its_checkpoint(write_experiment, tmp_path):
    """SIGKILL for everything; the continued run has the losses of one that was never killed."""
    path = write_experiment(**SLOW)
    (cell,) = plan_cells(load_experiment(path))
    killed = start(path)
    checkpoint = cell.directory / "version_0/checkpoints/last.ckpt"
    wait_for(lambda: checkpoint.exists() and any(row["step"] >= 300 for row in metrics_of(cell)))
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    run_cells([cell], "val/loss")
    assert read_state(cell).attempts == 2
    never = plan_cells(load_experiment(path), runs=tmp_path / "never")
    run_cells(never, "val/loss")
    assert losses([cell]) == losses(never)


def test_a_stopped_experiment_saves_its_runs(write_experiment):
    path = write_experiment(**{**SLOW, "seeds": [1, 2]})
    cells = plan_cells(load_experiment(path))
    stopped = start(path, "--parallel", "2")
    wait_for(lambda: all(any(row["step"] >= 100 for row in metrics_of(cell)) for cell in cells))
    stopped.terminate()
    stopped.communicate(timeout=300)
    assert stopped.returncode == 143
    for cell in cells:
        assert "stopped by SIGTERM: saved" in (cell.directory / "fit.log").read_text()
        assert (cell.directory / "version_0/checkpoints/last.ckpt").exists()


def test_time_left_is_foretold_from_the_work_that_is_done(write_experiment, monkeypatch, capsys):
    grid = {"tokens": {"few": {"budget.tokens": 64}, "many": {"budget.tokens": 64 * 9}}}
    few, many = plan_cells(load_experiment(write_experiment(drop=["budget", "variants"], grid=grid)))
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run_cells([few], "val/loss")
    progress = ExperimentProgress([few, many], [], "val/loss")
    now[0] += 10.0
    progress.ended(few, read_state(few))
    assert progress.left() == "about 1:30 left"  # nine times the work of the first
    assert "cell 1/2  few seed 1: val/loss 5." in capsys.readouterr().err
    table = progress.table()
    assert "1 done, 0 running, 1 waiting" in table.title
    assert [list(column.cells) for column in table.columns] == [
        ["few", "many"],
        [f"{losses([few])[0][-1]:.4f}", "waiting"],
    ]
    assert duration(3725) == "1:02:05"


def test_cells_side_by_side_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert LocalEngine(3).environment(0)["OMP_NUM_THREADS"] == "2"
    assert LocalEngine(1).environment(0) == {}


def test_runs_of_several_processes_get_one_of_their_own(write_experiment):
    """In the process of the whole experiment, Lightning would start the whole experiment again for the second rank."""
    cells = plan_cells(load_experiment(write_experiment(variants={"one": {}, "two": {"trainer.devices": 2}})))
    assert {cell.variant: of_several_processes(cell) for cell in cells} == {"one": False, "two": True}
