"""`lightning-gpt evaluate`: how good is a model, on published sets and on texts of one's own."""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


def evaluate_command(
    model: str,
    tasks: str | None = None,
    text: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    allow_code: bool = False,
    code_samples: int = 1,
    data: str = "data/evaluation",
    out: str | None = None,
    compare: list[str] | None = None,
    name: str | None = None,
    batch_size: int = 16,
    batch_tokens: int = 8192,
    dtype: Literal["auto", "stored", "float32", "bfloat16"] = "auto",
    device: str = "auto",
    seed: int = 0,
) -> None:
    """Evaluate a model on MMLU, HellaSwag, ARC, GSM8K, HumanEval, BBQ, ToxiGen and others, through lm-eval's interface.

    Prints a table; with `out` writes results.json after every task, and report.html (table, bars, radar). The same
    command again goes on where it was stopped.

    Args:
        model: checkpoint file, run directory, model directory or hub name.
        tasks: comma-separated: mmlu, hellaswag, arc_easy, arc_challenge, openbookqa, commonsense_qa, piqa, boolq, sciq,
            winogrande, lambada, gsm8k, humaneval, mbpp, bbq, toxigen, truthfulqa; gsm8k:100 = 100 questions of it.
        text: a text file whose bits per byte are measured.
        limit: of each other set only so many questions, drawn by the seed; the table says n of N.
        num_fewshot: examples before each question; null = as usual for each set (mmlu 5, gsm8k 8, mbpp 3, others 0).
        chat: ask in the model's chat template.
        allow_code: execute programs that the model writes (humaneval, mbpp): fenced in, but on request only.
        code_samples: programs drawn for each problem at temperature 0.8, for pass@k; 1 = the likeliest.
        data: directory of the sets (`python data/evaluation_sets.py` makes it).
        out: directory for results.json and report.html.
        compare: results.json files of other models, or of published scores, to show beside this one.
        name: of the model in the report; null = the path.
        batch_size: prompts side by side where text is generated.
        batch_tokens: tokens of a pass where text is scored.
        dtype: of the weights; auto = bfloat16 where it is faster, which is tried, else as stored.
        device: auto, cpu, cuda, ...
        seed: of the choice of questions and of drawn answers.
    """
    given = dict(locals())
    import os
    import platform
    from importlib.metadata import version
    from pathlib import Path

    from lightning_gpt.cli.command_line import command_line
    from lightning_gpt.cli.generate import resolve_device
    from lightning_gpt.evaluation.harness import perplexity_of, run_evaluations
    from lightning_gpt.evaluation.report import measured_before, read_results, summary, write_report, write_results
    from lightning_gpt.evaluation.scoring import Scorer
    from lightning_gpt.evaluation.tasks import find_evaluations
    from lightning_gpt.hub import open_model
    from lightning_gpt.hub.adapters import base_fingerprint
    from lightning_gpt.nn.flops import parameters

    for setting, value in (("limit", limit), ("code_samples", code_samples), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{setting}={value} must be at least 1")
    if tasks is None and text is None:
        raise ValueError("neither tasks nor text is given: name what to evaluate on")
    found = find_evaluations(tasks, Path(data), num_fewshot) if tasks is not None else []
    others = [read_results(Path(path)) for path in compare or []]
    where = resolve_device(device)
    net, tokenizer = open_model(model, device=where)
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer.json: put its tokenizer's file beside config.json")
    fingerprint = base_fingerprint(net)[:16]
    net = net.to(chosen_dtype(dtype, net))
    scorer = Scorer(net, batch_tokens)
    packages = ("torch", "lightning_gpt", *(("lm_eval", "datasets") if found else ()))
    content = {
        "name": name or model,
        "command": command_line("evaluate", evaluate_command, given),
        "results": {},
        "about": {
            "model": model,
            "parameters": f"{parameters(net.config):,}",
            "fingerprint of the weights": fingerprint,
            "context": net.config.block_size,
            "weights in": str(net.token_embedding.weight.dtype).removeprefix("torch."),
            "chat template": chat,
            "seed": seed,
            "programs drawn": code_samples,
            "hardware": hardware(where),
            "versions": ", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]),
        },
    }
    directory = None if out is None else Path(out)
    first = {"text": perplexity_of(Path(text), tokenizer, scorer)} if text is not None else {}

    def keep(results: dict[str, Any]) -> None:
        content["results"] = first | results
        if directory is not None:
            write_results(directory, content, os.getpid())

    keep(
        run_evaluations(
            net,
            tokenizer,
            found,
            Path(data),
            scorer,
            limit,
            batch_size,
            chat,
            allow_code,
            code_samples,
            seed,
            measured_before(directory, content["about"]) if directory is not None else None,
            keep,
        )
    )
    print(summary(content["results"]))
    if directory is not None:
        print(write_report(directory, content, others, os.getpid()))


def chosen_dtype(name: str, net: Any) -> "torch.dtype":
    """Type of the weights while evaluating; "auto" = bfloat16 where one of the network's products takes at most four
    fifths of its time in it, else as stored."""
    import time

    import torch

    weight = net.token_embedding.weight
    if name == "stored" or (name == "auto" and weight.dtype != torch.float32):
        return weight.dtype
    if name != "auto":
        return getattr(torch, name)
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(512, net.config.n_embd, device=weight.device, dtype=dtype)
        w = torch.randn(4 * net.config.n_embd, net.config.n_embd, device=weight.device, dtype=dtype)
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            torch.nn.functional.linear(x, w).sum().item()
            taken.append(time.perf_counter() - began)
        times[dtype] = min(taken)
    return torch.bfloat16 if times[torch.bfloat16] <= 0.8 * times[torch.float32] else weight.dtype


def hardware(device: "torch.device") -> str:
    """Name of the processor that computes, with the threads in use."""
    import platform

    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"
