"""What a scaling law is fitted to: size, tokens, FLOPs and final loss of training runs, read from their files.

An experiment's results.json has a cell a run; a run directory has config.yaml and metrics.jsonl.
"""

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lightning_gpt.planning.laws import Count

METRIC = "val/loss"


@dataclass(frozen=True)
class Run:
    """One finished training run."""

    name: str
    """Variant of an experiment, or the run's directory."""
    seed: int
    parameters: int
    body_parameters: int | None
    """Without embeddings; None: not written down."""
    tokens: float
    """D, trained on."""
    flops: float | None
    """Analytic, of the whole training; None: not written down."""
    loss: float
    corpus: str
    """What tells texts and vocabularies apart."""
    corpus_tokens: float | None = None
    """Of the training text."""

    def size(self, count: Count) -> int:
        """N with embeddings or without.

        Raises:
            ValueError: the count is not known.
        """
        if count == "all":
            return self.parameters
        if self.body_parameters is None:
            raise ValueError(
                f"count=body: {self.name} has no body_parameters in its results.json: run the experiment again with "
                "this version (finished cells are kept), give run directories, or use --count all"
            )
        return self.body_parameters


def read_runs(paths: list[str], metric: str = METRIC) -> tuple[list[Run], list[str]]:
    """Runs of some places, and warnings.

    Args:
        paths: results.json, a directory that holds one, a run directory, or a directory of run directories.
        metric: the loss, by its name in the logs.

    Raises:
        ValueError: a path that is none of these, a damaged file, no run at all.
    """
    runs: list[Run] = []
    warnings: list[str] = []
    for text in paths:
        path = Path(text)
        results = path / "results.json" if path.is_dir() else path
        if results.is_file():
            runs += _of_results(results, metric, warnings)
            continue
        logs = sorted(path.rglob("metrics.jsonl")) if path.is_dir() else []
        if not logs:
            raise ValueError(
                f"runs: {text} is neither a results.json, nor a run directory with config.yaml and metrics.jsonl"
            )
        for log in logs:
            run = _of_directory(log.parent, metric, warnings)
            if run is not None:
                runs.append(run)
    if not runs:
        raise ValueError(f"runs: no finished run with {metric} in {', '.join(paths)}; " + "; ".join(warnings))
    runs = list(dict.fromkeys(runs))  # a file that was named twice counts once
    return runs, warnings + corpus_warnings(runs)


def corpus_warnings(runs: list[Run]) -> list[str]:
    """Runs whose losses do not compare, and runs that read their text more than once."""
    by_corpus = defaultdict(list)
    for run in runs:
        by_corpus[run.corpus].append(run.name)
    warnings = []
    if len(by_corpus) > 1:
        parts = [f"{corpus} ({_names(names)})" for corpus, names in by_corpus.items()]
        warnings.append(f"runs of different data are fitted as one, their losses do not compare: {'; '.join(parts)}")
    repeated = [run.name for run in runs if run.corpus_tokens and run.tokens > 1.01 * run.corpus_tokens]
    if repeated:
        warnings.append(
            f"{_names(repeated)} read the training text more than once: the law knows no repeated tokens "
            "(Muennighoff et al., 2023, find little harm up to four times)"
        )
    return warnings


def split_runs(runs: list[Run], hold_out: str | None) -> tuple[list[Run], list[Run]]:
    """Runs to fit, and those whose name matches a pattern, to be predicted.

    Raises:
        ValueError: the pattern matches no run.
    """
    if hold_out is None:
        return runs, []
    held = [run for run in runs if fnmatch(run.name, hold_out)]
    if not held:
        raise ValueError(f"hold_out={hold_out} matches no run; there are {_names([run.name for run in runs], 12)}")
    return [run for run in runs if run not in held], held


def _names(names: list[str], most: int = 4) -> str:
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:most]) + (f" and {len(unique) - most} more" if len(unique) > most else "")


def _of_results(path: Path, metric: str, warnings: list[str]) -> list[Run]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        cells, corpora = results["cells"], results.get("corpora", {})
        made = [_of_cell(cell, corpora.get(cell["variant"], {}), metric) for cell in cells]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"runs: {path} is not the results.json of an experiment ({error!r})") from None
    left_out = [run for run in made if isinstance(run, str)]
    if left_out:
        warnings.append(f"left out of {path}: {'; '.join(left_out)}")
    return [run for run in made if isinstance(run, Run)]


def _of_cell(cell: dict[str, Any], corpus: dict[str, Any], metric: str) -> Run | str:
    """A run, or why it is none."""
    name = f"{cell['variant']} seed {cell['seed']}"
    loss = cell["final"].get(metric)
    if loss is None or not (math.isfinite(loss) and loss > 0):
        return f"{name} ({cell.get('status', 'unknown')}, {metric}={loss})"
    if not cell.get("parameters") or not cell.get("tokens"):
        return f"{name} (no parameters or tokens written down)"
    identity = " ".join(str(corpus[key]) for key in ("name", "scheme", "vocab_size") if key in corpus)
    return Run(
        cell["variant"],
        cell["seed"],
        cell["parameters"],
        cell.get("body_parameters"),
        cell["tokens"],
        cell.get("training_flops"),
        loss,
        identity or "unknown data",
        corpus.get("train_tokens"),
    )


def _of_directory(run: Path, metric: str, warnings: list[str]) -> Run | None:
    import yaml

    from lightning_gpt.data.corpus_meta import CorpusMeta
    from lightning_gpt.nn import GPTConfig
    from lightning_gpt.nn.flops import body_parameters, parameters, training_flops_per_token

    rows = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # a last line cut off by a kill
    losses = [row for row in rows if metric in row]
    tokens = [row["progress/tokens"] for row in rows if "progress/tokens" in row]
    if not losses or not tokens:
        warnings.append(f"left out: {run} has logged no {metric if not losses else 'progress/tokens'}")
        return None
    try:
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        data, fields = settings["data"]["init_args"], settings["model"]["init_args"]["config"]
        steps = settings["trainer"]["max_steps"]
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"runs: {run} has no config.yaml of a training run ({error!r})") from None
    meta = CorpusMeta.load(data["data_dir"])
    config = GPTConfig.from_dict({**fields, "vocab_size": meta.tokenizer.vocab_size, "block_size": data["block_size"]})
    last = losses[-1]
    if last["step"] < steps:
        warnings.append(
            f"{run} ended or was last measured at step {last['step']} of {steps}: before the end of its schedule its "
            "loss lies above what its tokens are worth"
        )
    # The log interval need not divide the last step.
    seen = max(tokens) * last["step"] / max(row["step"] for row in rows if "progress/tokens" in row)
    return Run(
        str(run),
        settings.get("seed_everything") or 0,
        parameters(config),
        body_parameters(config),
        seen,
        training_flops_per_token(config, config.block_size) * seen,
        last[metric],
        f"{meta.name} {meta.tokenizer.scheme} {meta.tokenizer.vocab_size}",
        meta.split("train").tokens,
    )
