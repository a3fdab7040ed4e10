"""The rules of the house: who may import whom, how long a file may be, and that what is written down exists."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser, auto_cli, capture_parser

from lightning_gpt.cli import VERBS, main
from lightning_gpt.cli.parsing import ClearErrorParser, completed, with_nulls_as_config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_gpt"
FLOORS = {
    "nn": 1,
    "text": 1,
    "optim": 1,
    "objectives": 1,
    "hub": 2,
    "data": 2,
    "inference": 2,
    "parallel": 2,
    "tasks": 3,
    "callbacks": 3,
    "planning": 3,
    "rewards": 3,
    "evaluation": 3,
    "quantization": 3,
    "experiments": 4,
    "learning": 4,
    "load": 4,
    "serving": 4,
    "cli": 5,
}
GROUND = {folder for folder, floor in FLOORS.items() if floor == 1}
STRANGERS = {"nn", "text", "optim", "hub", "data", "inference", "parallel"}
"""Folders that do not import others of their own floor."""
KNOWS_LIGHTNING = {"data", "parallel", "tasks", "callbacks", "experiments", "cli"}
OPTIONAL = {"transformers", "bitsandbytes", "datasets", "pyarrow", "matplotlib", "huggingface_hub", "peft"}
LIGHT = {"load", "serving"}
"""Folders whose modules load neither torch nor what is above it, workers apart: the gateway stays small."""
KNOWS_FILES = {"pathlib", "io", "os", "shutil", "tempfile", "pickle", "zipfile"}
SOURCES = sorted(PACKAGE.rglob("*.py"))
TRAINERS = sorted((ROOT / "configs" / "trainer").glob("*.yaml"))
CONFIGS = sorted({*(ROOT / "configs").glob("*/*.yaml")} - {*TRAINERS})
README = ROOT / "README.md"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def folder_of(path: Path) -> str | None:
    """nn for lightning_gpt/nn/gpt.py, None for a file beside the folders."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Dotted names that a file imports anywhere, or when it is imported itself; not those for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: import by absolute name"
            found.add(node.module)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def test_every_folder_has_its_floor():
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert folders <= FLOORS.keys()


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_go_downwards(path):
    folder = folder_of(path)
    for imported in imports(path):
        parts = imported.split(".")
        if parts[0] in ("lightning", "pytorch_lightning", "lightning_fabric"):
            assert folder in KNOWS_LIGHTNING, f"{name(path)} imports {imported}"
            assert parts[0] == "lightning", f"{name(path)} imports {imported}: write lightning"
        if parts[0] != "lightning_gpt" or folder is None or len(parts) < 2:
            continue
        other = parts[1]
        if other == folder:
            continue
        limit = FLOORS[folder] - (1 if folder in STRANGERS else 0)
        assert FLOORS[other] <= limit, f"{name(path)} (floor {FLOORS[folder]}) imports {imported}"


@pytest.mark.parametrize("path", [p for p in SOURCES if folder_of(p) in GROUND], ids=name)
def test_the_ground_floor_knows_no_files(path):
    assert not {imported.partition(".")[0] for imported in imports(path)} & KNOWS_FILES
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call.id for call in calls if isinstance(call, ast.Name) and call.id == "open"]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_heavy_packages_are_imported_where_they_are_used(path):
    if path.name == "adamw8bit.py":
        return  # subclasses bitsandbytes, and is itself imported where it is used
    assert not {imported.partition(".")[0] for imported in imports(path, top_level=True)} & OPTIONAL


@pytest.mark.parametrize("folder", sorted(LIGHT))
def test_the_gateway_and_the_load_generator_know_no_torch(folder):
    """Importing every module of them, the worker's apart, loads neither torch nor Lightning."""
    modules = [
        f"lightning_gpt.{folder}.{path.stem}"
        for path in (PACKAGE / folder).glob("*.py")
        if path.stem not in ("worker", "__init__", "__main__")
    ]
    code = f"import sys; import {', '.join(modules)}; print(sorted({{'torch', 'lightning'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_no_file_is_long_and_none_is_a_drawer():
    for folder in ("lightning_gpt", "tests", "benchmarks", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, name(path)
            assert path.stem not in ("utils", "util", "helpers", "misc", "common"), name(path)


def test_tests_mirror_the_package():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders == {folder for folder in FLOORS if any((PACKAGE / folder).glob("*.py"))} | {"deploy"}
    stems = [path.stem for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(stems) == len(set(stems)), "pytest needs different names"


def runs_here(trainer: Path) -> bool:
    settings = yaml.safe_load(trainer.read_text())["trainer"]
    if settings["accelerator"] == "gpu":
        return torch.cuda.is_available() and settings["devices"] == 1
    return settings.get("strategy", "auto") == "auto"


@pytest.mark.parametrize("trainer", [path for path in TRAINERS if runs_here(path)], ids=name)
@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_every_configuration_trains(
    config, trainer, corpus, tiny_model, pair_rows, answer_rows, squares, tiny_clip, clean_process, tmp_path
):
    settings = yaml.safe_load(config.read_text())
    if settings["model"]["class_path"].endswith((".CLIP", ".LLaVA")):
        args = ["fit", "-c", str(config), "-c", str(trainer), "--trainer.fast_dev_run", "true"]
        rows = squares if settings["model"]["class_path"].endswith(".CLIP") else squares.parent / "talks.jsonl"
        args += [
            "--data.train",
            str(rows),
            "--data.val",
            str(rows),
            "--data.num_workers",
            "0",
            "--data.batch_size",
            "4",
        ]
        if "transfer" in settings["data"]["init_args"]:
            args += ["--data.transfer", str(rows)]
        if settings["model"]["class_path"].endswith(".LLaVA"):
            args += ["--data.max_length", "64", "--data.chat_template", "plain", "--model.init_from", str(tiny_model)]
            args += ["--model.tower", str(tiny_clip), "--model.image_size", "16"]
        main(args)
        return
    if settings["data"]["class_path"].endswith(".TokenData") and "init_from" in settings["model"]["init_args"]:
        same = tmp_path / "corpus"  # what goes on reading has the tokens of the model it begins from
        main(["prepare", str(README), "--tokenizer", str(tiny_model / "tokenizer.json"), "--out", str(same)])
        args = ["fit", "-c", str(config), "-c", str(trainer), "--trainer.fast_dev_run", "true"]
        args += ["--model.init_from", str(tiny_model), "--data.data_dir", str(same), "--data.block_size", "32"]
        main([*args, "--data.batch_size", "2", "--data.val_batch_size", "2"])
        return
    if "init_from" in settings["model"]["init_args"]:
        rows = answer_rows if "InstructionData" in settings["data"]["class_path"] else pair_rows
        args = ["fit", "-c", str(config), "-c", str(trainer), "--trainer.fast_dev_run", "true", "--samples.tokens", "0"]
        args += ["--model.init_from", str(tiny_model), "--data.train", str(rows), "--data.val", str(rows)]
        if "reference_file" in settings["model"]["init_args"]:
            args += ["--model.reference_file", "reference.safetensors"]
        if "max_length" in settings["data"]["init_args"]:
            args += ["--data.max_length", "64"]
        if "max_new_tokens" in settings["model"]["init_args"]:
            args += ["--model.max_new_tokens", "8"]
        main(args)
        return
    settings = settings["model"]["init_args"]["config"]
    heads = settings.get("n_head", 12)
    args = ["fit", "-c", str(config), "-c", str(trainer), "--trainer.fast_dev_run", "true"]
    args += ["--data.data_dir", str(corpus), "--data.batch_size", "2", "--data.val_batch_size", "2"]
    args += ["--data.block_size", "32", "--model.config.n_layer", "2", "--model.config.n_embd", str(16 * heads)]
    args += ["--model.compile", "false", "--trainer.accumulate_grad_batches", "2", "--samples.tokens", "0"]
    main(args)


@pytest.mark.parametrize("trainer", [path for path in TRAINERS if not runs_here(path)], ids=name)
def test_other_machines_configurations_are_understood(trainer, capsys, clean_process):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", str(CONFIGS[0]), "-c", str(trainer), "--print_config"])
    assert stop.value.code == 0
    strategy = yaml.safe_load(capsys.readouterr().out)["trainer"]["strategy"]
    assert (
        strategy == yaml.safe_load(trainer.read_text())["trainer"].get("strategy", "auto") or "class_path" in strategy
    )


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_a_configuration_opens_with_its_command(config):
    text = config.read_text()
    comment = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    source = (
        "python data/",
        "lightning-gpt prepare ",
        "lightning-gpt export ",
        "lightning-gpt prefer ",
        "lightning-gpt import ",
    )
    assert any(line.startswith(source) for line in comment)
    (fit,) = [line for line in comment if line.startswith("lightning-gpt fit ")]
    assert f"-c {name(config)} " in fit
    check_command(fit)


def commands(page: Path = README) -> list[str]:
    """Lines of a page's shell blocks, without comments and with continuations joined."""
    found = []
    for block in re.findall(r"```(?:bash|sh|shell|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"(^|\s)#.*", "", line).strip().removeprefix("$ ")
            found += [part.strip() for part in re.split(r"&&|\|\||;|\|", line) if part.strip()]
    return found


@cache
def check_command(command: str) -> None:
    """A line of a shell: our verbs and their options, make's targets and paths of the repository exist."""
    words = [word for word in shlex.split(command) if "=" not in word or not word.split("=")[0].isupper()]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), command
    if words[0] == "lightning-gpt":
        check_verb(words[1:])
    for word in words:
        if re.match(r"(configs|experiments|benchmarks|tests)/", word):
            assert (ROOT / word).exists(), command


def check_verb(args: list[str]) -> None:
    """Parses without running; a mistake exits with 2."""
    verb, options = args[0], args[1:]
    if verb.startswith("--"):
        return
    module, function, _ = VERBS[verb]
    if function:
        command = getattr(importlib.import_module(f"lightning_gpt.cli.{module}"), function)
        parser_of(verb).parse_args(completed(command, options))
        return
    with pytest.raises(SystemExit) as stop:
        parser_of(verb).parse_args([verb, *with_nulls_as_config(options), "--print_config"])
    assert stop.value.code == 0, args


@cache
def parser_of(verb: str) -> ArgumentParser:
    """What the verb parses with, built once: commands are many, and building takes longer than parsing."""
    module, function, _ = VERBS[verb]
    if not function:
        return capture_parser(lambda: main([verb]))
    command = getattr(importlib.import_module(f"lightning_gpt.cli.{module}"), function)
    return capture_parser(lambda: auto_cli(command, args=[], parser_class=ClearErrorParser))


@pytest.mark.parametrize("command", commands())
def test_readme_says_what_exists(command, clean_process, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    check_command(command)


@pytest.mark.parametrize(
    "command",
    [
        "lightning-gpt fit -c configs/pretrain/shakespeare.yaml --trainer.max_step 3",
        "lightning-gpt fit -c configs/pretrain/nothing.yaml",
        "lightning-gpt prepare shakespeare --tokenizr char",
        "lightning-gpt plan nothing",
        "make nothing",
        "python benchmarks/nothing.py",
    ],
)
def test_a_wrong_command_is_noticed(command, clean_process, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, SystemExit)):
        check_command(command)


def test_readme_links_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_help_lists_every_verb_and_imports_little():
    code = (
        "import sys; from lightning_gpt.cli import main; main(['--help']); "
        "print('imported', *sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, imported = done.stdout.partition("imported")
    for verb, (_, _, line) in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(line)}$", text, re.MULTILINE), verb
    assert not {"torch", "lightning", "numpy", "jsonargparse", "transformers"} & set(imported.split())


@pytest.mark.parametrize("verb", [verb for verb in VERBS if VERBS[verb][1]])
def test_every_verb_explains_its_options(verb, capsys, clean_process):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"lightning-gpt {verb}" in capsys.readouterr().out


def test_fit_explains_its_options(capsys, clean_process):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("--trainer.max_steps", "--last.every_n_steps", "--samples.tokens", "--run.name", "--ckpt_path"):
        assert option in text
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "lightning_gpt.tasks.Pretraining"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Number of transformer blocks" in text
    assert "--model.activation_checkpointing" in text


def test_an_unknown_verb_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["prepar"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "lightning-gpt: error: unknown verb 'prepar', did you mean 'prepare'? (see lightning-gpt --help)\n"
    )
