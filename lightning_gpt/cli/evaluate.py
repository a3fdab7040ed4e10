"""`lightning-gpt evaluate`: how good is a model, on published sets and on texts of one's own."""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path


def evaluate_command(
    model: str,
    tasks: str | None = None,
    text: str | None = None,
    limit: int | None = None,
    data: str = "data/evaluation",
    out: str | None = None,
    compare: list[str] | None = None,
    name: str | None = None,
    chat: bool = False,
    allow_code: bool = False,
    batch_size: int = 16,
    batch_tokens: int = 8192,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str = "auto",
    seed: int = 0,
) -> None:
    """Evaluate a model on MMLU, HellaSwag, ARC, GSM8K, HumanEval, BBQ, ToxiGen and others, through lm-eval's interface.

    Prints a table; with `out` writes results.json after every task, and report.html (table, bars, radar). The same
    command again goes on where it was stopped.

    Args:
        model: checkpoint file, run directory, model directory or hub name.
        tasks: comma-separated: mmlu, hellaswag, arc_easy, arc_challenge, openbookqa, commonsense_qa, piqa, boolq, sciq,
            winogrande, lambada, gsm8k, humaneval, mbpp, bbq, toxigen, truthfulqa.
        text: a text file whose bits per byte are measured.
        limit: of each set only so many examples, drawn by the seed; the table says n of N.
        data: directory of the sets (`python data/evaluation_sets.py` makes it).
        out: directory for results.json and report.html.
        compare: results.json files of other models to show beside this one.
        name: of the model in the report; null = the path.
        chat: ask in the model's chat template.
        allow_code: execute programs that the model writes (humaneval, mbpp): fenced in, but on request only.
        batch_size: prompts side by side where text is generated.
        batch_tokens: tokens of a pass where text is scored.
        dtype: of the matrix products; auto = bfloat16 on GPUs, as stored on CPU.
        device: auto, cpu, cuda, ...
        seed: of the choice of examples.
    """
    given = dict(locals())
    import json
    import platform
    import sys
    from importlib.metadata import version
    from pathlib import Path

    import torch

    from lightning_gpt.cli.command_line import command_line
    from lightning_gpt.cli.generate import resolve_device
    from lightning_gpt.evaluation.harness import check_code, perplexity_of, run_evaluations
    from lightning_gpt.evaluation.language_model import Scorer
    from lightning_gpt.evaluation.report import shown, write_report
    from lightning_gpt.evaluation.tasks import find_evaluations
    from lightning_gpt.hub import open_model
    from lightning_gpt.hub.adapters import base_fingerprint

    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1")
    if tasks is None and text is None:
        raise ValueError("neither tasks nor text is given: name what to evaluate on")
    found = find_evaluations(tasks, Path(data)) if tasks is not None else []
    others = {}
    for path in compare or []:
        try:
            others[json.loads(Path(path).read_text(encoding="utf-8"))["name"]] = json.loads(Path(path).read_text())
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"compare={path} is no results.json of an evaluation: {error}") from None
    where = resolve_device(device)
    net, tokenizer = open_model(model, device=where)
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer.json: put its tokenizer's file beside config.json")
    low = torch.bfloat16 if dtype == "bfloat16" or (dtype == "auto" and where.type == "cuda") else None
    scorer = Scorer(net, batch_tokens, low)
    content = {
        "name": name or model,
        "command": command_line("evaluate", evaluate_command, given),
        "results": {},
        "about": {
            "model": model,
            "parameters": sum(p.numel() for p in net.parameters()),
            "weights": base_fingerprint(net)[:16],
            "context": net.config.block_size,
            "matrix products in": str(low or net.token_embedding.weight.dtype).removeprefix("torch."),
            "chat template": chat,
            "at most so many examples": limit,
            "examples drawn with seed": seed,
            "hardware": torch.cuda.get_device_name(where) if where.type == "cuda" else platform.machine(),
            "versions": ", ".join(f"{p} {version(p)}" for p in ("torch", *(["lm_eval"] if found else []))),
        },
    }
    directory = None if out is None else Path(out)
    results = content["results"] = _begun(directory, content["about"])
    if text is not None:
        results["text"] = perplexity_of(Path(text), net, tokenizer, scorer)
    check_code(found, allow_code)
    for one in found:
        if one.name in results:
            print(f"{one.name}: already in {directory / 'results.json'}", file=sys.stderr)
            continue
        results |= run_evaluations(net, tokenizer, [one], Path(data), scorer, limit, batch_size, chat, allow_code, seed)
        if directory is not None:
            _save(directory, content)
    width = max(map(len, results))
    for task, row in results.items():
        guess = "" if row["chance"] is None else f", guessing {row['chance']:.2f}"
        print(f"{task:<{width}}  {row['metric']:<12} {shown(row)}  (n={row['n']:,} of {row['of']:,}{guess})")
    if directory is not None:
        _save(directory, content)
        write_report(directory, content["name"], content, others)
        print(f"{directory / 'report.html'}")


def _begun(directory: "Path | None", about: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run with the same model and settings has measured: a stopped evaluation goes on."""
    import json

    path = None if directory is None else directory / "results.json"
    if path is None or not path.exists():
        return {}
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        return before["results"] if before["about"] == about else {}
    except (ValueError, KeyError):
        return {}


def _save(directory: "Path", content: dict[str, Any]) -> None:
    """results.json, written beside its place first."""
    import json
    import os

    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".results.json.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, directory / "results.json")
