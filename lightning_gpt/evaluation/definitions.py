"""lm-evaluation-harness's own task definitions, read from its package and given data from files.

Prompts, choices, few-shot examples, filters and metrics are the harness's; only where the rows come from is ours.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml


@lru_cache(maxsize=1)
def definitions_folder() -> Path:
    """The folder `tasks` of the installed lm-eval.

    Raises:
        ValueError: it is not installed.
    """
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise ValueError("evaluations need lm-eval: pip install 'lightning_gpt[eval]'")
    return Path(next(iter(found.submodule_search_locations))) / "tasks"


def read_definition(path: str) -> dict[str, Any]:
    """One of lm-eval's YAML files, with what it includes and the functions it names.

    Args:
        path: below its folder of tasks, such as "arc/arc_easy.yaml".

    Raises:
        ValueError: this version of lm-eval does not have it.
    """
    file = definitions_folder() / path
    if not file.exists():
        raise ValueError(f"this version of lm-eval has no tasks/{path}: pip install 'lightning_gpt[eval]' has")
    values = yaml.load(file.read_text(encoding="utf-8"), _loader(file.parent))
    included = values.pop("include", None)
    if included is not None:
        below = (file.parent / included).relative_to(definitions_folder())
        values = read_definition(str(below)) | values
    for name in ("tag", "group"):
        values.pop(name, None)
    return values


def _loader(folder: Path) -> type:
    class Loader(yaml.SafeLoader):
        """Knows `!function module.name`: a function of a file beside the YAML."""

    Loader.add_constructor("!function", lambda loader, node: _function(folder, loader.construct_scalar(node)))
    return Loader


def _function(folder: Path, dotted: str) -> Callable:
    """Imported when it is first called: some of these modules fetch things from the network."""
    stem, _, name = dotted.rpartition(".")
    name_of_module = ".".join(("lm_eval", "tasks", *folder.relative_to(definitions_folder()).parts, stem))

    def call(*arguments: Any, **settings: Any) -> Any:
        module = sys.modules.get(name_of_module)
        if module is None:
            spec = importlib.util.spec_from_file_location(name_of_module, folder / f"{stem}.py")
            module = importlib.util.module_from_spec(spec)
            sys.modules[name_of_module] = module
            spec.loader.exec_module(module)
        return getattr(module, name)(*arguments, **settings)

    call.__name__ = name
    return call


def returned_literal(path: str, function: str) -> Any:
    """What a function of lm-eval's that only returns a literal returns, without importing its module.

    Args:
        path: of the Python file, below its folder of tasks.
        function: its name there.
    """
    tree = ast.parse((definitions_folder() / path).read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    return ast.literal_eval(found.body[-1].value)


def with_rows(
    definition: Mapping[str, Any], rows: list[dict], examples: list[dict] | None, shots: int
) -> dict[str, Any]:
    """A definition that asks about these rows.

    Args:
        definition: of lm-eval.
        rows: of the set, in the columns that the definition reads.
        examples: rows to take few-shot examples from; None = those in the definition, else the other rows of the set.
        shots: how many examples stand before a question.
    """

    def dataset(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        splits = {"test": Dataset.from_list(rows)}
        return splits | ({"examples": Dataset.from_list(examples)} if examples else {})

    config = {name: value for name, value in definition.items() if not name.endswith("_split")}
    config |= {"custom_dataset": dataset, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {}}
    config |= {"test_split": "test", "num_fewshot": shots}
    given = config.get("fewshot_config") or {}
    if shots == 0:
        config["fewshot_config"] = {"samples": []}
    elif "samples" not in given:
        config["fewshot_split"] = "examples" if examples else "test"
    return config
