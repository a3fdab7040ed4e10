"""Searches with real training runs: killed and continued, shared by two processes, trials stopped early."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from lightning_gpt.experiments.cell_run import CellState, write_state
from lightning_gpt.experiments.plan import plan_cells
from lightning_gpt.experiments.search_report import write_search_report
from lightning_gpt.experiments.search_results import collect_search, confirm
from lightning_gpt.experiments.search_run import OUTCOME, SEARCHES, SearchRun
from lightning_gpt.experiments.search_spec import load_search
from lightning_gpt.experiments.search_study import adopted, asked, import_optuna, open_study, settings_of
from lightning_gpt.experiments.search_trial import TrialOutcome

RATE = "model.init_args.optimizer.init_args.lr"
HEADS = "model.init_args.config.n_head"
OPTIMIZER = "model.init_args.optimizer"
ADAMW = {f"{OPTIMIZER}.class_path": "lightning_gpt.optim.AdamW"}


def command(path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "lightning_gpt", "experiment", "search", str(path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_killed_then_finished_by_two_processes(write_search, tmp_path):
    """A search that is killed in its first trial is finished by two commands at once: no trial twice, none lost."""
    path = write_search(
        trials=2,
        budget={"max_steps": 300},
        validations=1,
        pruner="none",
        overrides={**ADAMW, "last.every_n_steps": 20, "trainer.log_every_n_steps": 10},
    )
    directory = tmp_path / "runs/searches/01_chapter/trial"
    place = directory / "trial_0000/seed_1/version_0"
    first = command(path)
    deadline = time.monotonic() + 300
    while not (place / "checkpoints/last.ckpt").exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert first.poll() is None, first.communicate()[0]
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()

    both = [command(path), command(path)]
    told = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    study = open_study(load_search(path), directory)
    trials = study.get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    states = [json.loads((directory / f"trial_000{n}/seed_1/state.json").read_text()) for n in range(2)]
    assert [state["attempts"] for state in states] == [2, 1], "one trial was continued, the other not repeated"
    assert len({trial.params[RATE] for trial in trials}) == 2, "two processes drew the same"
    ended = [line.split("number ")[1][0] for text in told for line in text.splitlines() if line.startswith("trial ")]
    assert sorted(ended) == ["0", "1"]
    results = json.loads((path.with_suffix("") / "results.json").read_text())
    assert [trial["steps"] for trial in results["trials"]] == [300] * 2
    kept = list(directory.glob("trial_*/seed_1/version_0/checkpoints"))
    assert [place.parts[-4] for place in kept] == [f"trial_{results['best']:04d}"]


def test_trials_end_in_four_ways(write_search, tmp_path, capsys):
    """Done, stopped early, diverged, refused."""
    wild = {"class_path": "lightning_gpt.optim.SGD", "init_args": {"lr": 1e30}}
    usual = {"class_path": "lightning_gpt.optim.AdamW", "init_args": {"lr": 0.01}}
    idle = {"class_path": "lightning_gpt.optim.AdamW", "init_args": {"lr": 1e-9}}
    path = write_search(
        space={OPTIMIZER: {"choices": [usual, idle, wild]}, HEADS: {"choices": [1, 3]}},
        trials=4,
        budget={"max_steps": 2000},
        validations=20,
        start=[{OPTIMIZER: one, HEADS: heads} for one, heads in ((usual, 1), (idle, 1), (wild, 1), (usual, 3))],
        pruner={"kind": "asha", "reduction_factor": 2},
        overrides={"trainer.gradient_clip_val": None, "trainer.limit_val_batches": 4},
        confirm={"seeds": [5, 6]},
    )
    search = load_search(path)
    study = SearchRun(search).run()
    told = capsys.readouterr().err
    assert "trial 1/4  number 0: val/loss " in told and "trial 4/4" in told
    trials = study.get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "PRUNED", "FAIL"]
    assert sorted(trials[0].intermediate_values) == list(range(1, 21))
    results = collect_search(search, study, "command", None)
    good, slow, sick, refused = results["trials"]
    assert (good["state"], slow["state"], sick["state"], refused["state"]) == (
        "complete",
        "pruned",
        "diverged",
        "failed",
    )
    assert good["steps"] == good["full_steps"] == 2000
    assert 100 <= slow["steps"] < 2000, "it was stopped while it ran"
    assert slow["flops"] == pytest.approx(slow["full_flops"] * slow["steps"] / 2000)
    assert "in optimizer step" in sick["message"] and sick["value"] is None
    assert "n_head" in refused["message"] and refused["full_steps"] == 0
    assert results["best"] == 0 and good["value"] == pytest.approx(trials[0].value)
    log = (tmp_path / "runs/searches/01_chapter/trial/trial_0001/seed_1/fit.log").read_text()
    assert "stopped by SIGTERM: saved" in log

    report = write_search_report(results, tmp_path / "report").read_text()
    assert "Of 4 trials 1 came to their end, 1 were stopped early, 1 diverged, 1 failed" in report
    assert "% saved)" in report and "partly luck" in report
    for name in ("best.yaml", "history.png", "slice.png", "results.json"):
        assert (tmp_path / "report" / name).stat().st_size > 100, name

    SearchRun(search).run()  # nothing is left to do
    assert "4 of 4 trials are finished already" in capsys.readouterr().err
    assert len(study.get_trials()) == 4


def test_a_changed_search_is_not_mixed_with_the_old(write_search, tmp_path):
    search = load_search(write_search())
    run = SearchRun(search)
    run.directory.mkdir(parents=True)
    open_study(search, run.directory).set_user_attr("identity", {"space": "another", "metric": "x"})
    with pytest.raises(ValueError, match=r"made under another space and other metric and .*--restart"):
        run.run()
    with pytest.raises(ValueError, match="parallel=0 must be at least 1"):
        SearchRun(search, parallel=0)


def test_what_a_killed_process_drew_is_kept_and_not_drawn_again(write_search, tmp_path):
    search = load_search(write_search(trials=9, sampler={"kind": "tpe", "seed": 4}))
    study = open_study(search, tmp_path)
    drawn = [asked(search, study).params for _ in range(3)]
    again = open_study(search, tmp_path)  # as another process would
    running = again.get_trials()
    assert [adopted(search, again, trial._trial_id).params for trial in running] == drawn
    further = asked(search, again).params
    assert further not in drawn
    other = tmp_path / "other"
    other.mkdir()
    same = open_study(search, other)
    assert [asked(search, same).params for _ in range(4)] == [*drawn, further], "a seed decides what is drawn"


def test_a_trial_without_settings_gets_them(write_search, tmp_path):
    """Killed between the trial's birth and its first setting."""
    search = load_search(write_search())
    study = open_study(search, tmp_path)
    number = study.ask().number
    trial = adopted(search, study, study.get_trials()[number]._trial_id)
    assert 1e-4 <= settings_of(search, trial.params)[RATE] <= 1e-1


def test_nothing_but_failures_is_an_error(write_search):
    search = load_search(write_search(trials=5, space={HEADS: {"choices": [3, 5, 7]}}))
    with pytest.raises(RuntimeError, match=r"the first 3 trials failed, the last with: .*n_head"):
        SearchRun(search).run()


def finish(cell, loss):
    """What a finished process leaves behind."""
    (cell.directory / "version_0").mkdir(parents=True)
    (cell.directory / "version_0/metrics.jsonl").write_text(json.dumps({"step": cell.max_steps, "val/loss": loss}))
    write_state(cell, CellState(cell.config_hash, "done", seconds=1.0))


def test_the_confirmation_compares_pairs_of_fresh_seeds(write_search, tmp_path):
    search = load_search(
        write_search(start=[{RATE: 0.01}], confirm={"seeds": [5, 6, 7]}, overrides={**ADAMW, RATE: 0.5})
    )
    study = open_study(search, tmp_path)
    optuna = import_optuna()
    for value, rate in ((2.0, 0.01), (1.5, 0.02)):
        study.add_trial(
            optuna.create_trial(
                params={RATE: rate},
                distributions={RATE: search.space[RATE].distribution()},
                value=value,
                user_attrs={OUTCOME + name: one for name, one in asdict(TrialOutcome("complete", [value])).items()},
            )
        )
    variants = {"start": {RATE: 0.01}, "best": {RATE: 0.02}}
    for name, settings in variants.items():
        for seed in search.confirm:
            experiment = search.experiment(name, settings)
            object.__setattr__(experiment.variants[name], "seeds", (seed,))
            (cell,) = plan_cells(experiment, SEARCHES)
            finish(cell, {"start": 2.0, "best": 1.8}[name] + 0.01 * seed * (name == "best"))
    confirmation = confirm(search, study, SEARCHES)
    assert [cell["final"]["val/loss"] for cell in confirmation["cells"] if cell["variant"] == "start"] == [2.0] * 3
    results = collect_search(search, study, "command", confirmation)
    text = write_search_report(results, tmp_path / "report").read_text()
    # Differences -0.15, -0.14, -0.13: mean -0.14, half-width 4.3027 * 0.01 / sqrt(3) = 0.0248.
    assert "With 3 fresh seeds the best minus the start is -0.1400 ± 0.0248" in text
    assert "Confirmed with fresh seeds" in text
