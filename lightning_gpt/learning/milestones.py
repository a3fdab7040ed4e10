"""The milestones of the path, each a check of something that stands: runs, results, a service, a report."""

from __future__ import annotations

from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.runs import Study, folder, lowest, opened, processes, steps
from lightning_gpt.learning.service import ask, completion

REPORT_WORDS = 300


def check_model(answer: dict) -> str:
    """A Shakespeare model with a training loss below 1.0."""
    run = opened(answer)
    data = str(run.settings.get("data.data_dir") or "")
    if "shakespeare" not in data.lower():
        raise Wrong(f"{run.directory} was trained on {data or 'an unknown corpus'}, not on Shakespeare")
    found = lowest(run, "train/loss")
    if found >= 1.0:
        raise Wrong(f"the lowest training loss of {run.directory} is {found:.3f}: not below 1.0")
    return f"training loss {found:.3f}, {steps(run)} steps"


def check_improvement(answer: dict) -> str:
    """An experiment of two variants or more, over seeds."""
    study = Study(answer)
    study.needs(2, 2)
    return f"{study.content.get('question', '').strip()} Lowest {study.metric}: {study.best()}"


def check_processes(answer: dict) -> str:
    """A run of several processes."""
    run = opened(answer)
    count = processes(run)
    if count is None or count < 2:
        devices, nodes = (run.settings.get(f"trainer.{name}") for name in ("devices", "num_nodes"))
        raise Wrong(
            f"{run.directory} ran with trainer.devices={devices} on {nodes or 1} node: two processes are asked for"
        )
    return f"{count} processes, {steps(run)} steps"


def check_served(answer: dict) -> str:
    """A service that is ready and continues a text."""
    url = str(answer.get("url") or "").rstrip("/")
    if not url.startswith("http"):
        raise Wrong("url: not filled in yet: such as http://127.0.0.1:8000")
    status, _ = ask(f"{url}/health/ready", key=answer.get("key"))
    if status != 200:
        raise Wrong(f"{url}/health/ready says {status}, not 200")
    return f"it continues 'To be' with {completion(url, answer.get('key'))[:40]!r}"


def check_project(answer: dict) -> str:
    """A report with figures and numbers."""
    path = folder(answer, "report")
    path = path if path.is_file() else path / "report.md"
    if not path.is_file():
        raise Wrong(f"report: {path} does not exist")
    text = path.read_text(encoding="utf-8")
    words = len(text.split()) + sum("\u4e00" <= one <= "\u9fff" for one in text)
    if words < REPORT_WORDS:
        raise Wrong(f"the report has {words} words: say in {REPORT_WORDS} or more what was asked, done and found")
    if "|" not in text and not any(sign in text for sign in ("![", "<img")):
        raise Wrong("the report has neither a table nor a figure")
    if "lightning-gpt " not in text:
        raise Wrong("the report does not say by which commands its numbers are made again")
    return f"{words} words"


EXERCISES = (
    Exercise(
        1,
        "A model of Shakespeare",
        "run",
        "A training loss below 1.0 nat per character. Chapter 03 has the recipe.",
        "run:   # run directory",
        check_model,
        ("configs/pretrain/shakespeare_milestone.yaml.", "Its header says how long it takes."),
        "model",
    ),
    Exercise(
        2,
        "An improvement, compared",
        "run",
        "An experiment of two variants or more, with two seeds or more. Chapters 04, 05 and 07 show how.",
        "experiment:   # folder with results.json",
        check_improvement,
        ("lightning-gpt experiment run FILE.yaml.", "Exercise 07.3 is this milestone, with five seeds."),
        "improvement",
    ),
    Exercise(
        2,
        "More than one process",
        "run",
        "A run of two processes or more. Chapter 08 has the command.",
        "run:   # run directory",
        check_processes,
        ("-c configs/trainer/ddp.yaml --trainer.devices 2.", "--trainer.accelerator cpu works without GPUs."),
        "processes",
    ),
    Exercise(
        2,
        "A model that is served",
        "run",
        "A service that is ready and continues a text. Chapter 10 has the command.",
        "url:   # such as http://127.0.0.1:8000\nkey:   # where it asks for one",
        check_served,
        ("lightning-gpt serve MODEL.", "/health/ready says when a model can be asked."),
        "served",
    ),
    Exercise(
        3,
        "A finished project",
        "run",
        "A report.md of your own project: what was asked, what was done by which commands, what was found, in words, "
        "numbers and figures.",
        "report:   # report.md, or its folder",
        check_project,
        ("The capstone is one, but any question of your own will do.", "Begin with the answer, then how you know it."),
        "project",
    ),
)
