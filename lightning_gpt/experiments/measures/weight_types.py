"""What it costs to keep weights in fewer bits, and what it saves."""

from pathlib import Path
from statistics import median

import torch

from lightning_gpt.evaluation.scoring import Scorer
from lightning_gpt.evaluation.tasks import find_evaluations
from lightning_gpt.experiments.measures.perplexity import held_out_windows, perplexity
from lightning_gpt.hub import open_model
from lightning_gpt.inference.measure import random_prompts, time_generation
from lightning_gpt.inference.runners import make_runner
from lightning_gpt.nn import GPT
from lightning_gpt.quantization.settings import nbytes
from lightning_gpt.text.tokenizer import Tokenizer


def measure_weights(
    model: str,
    method: str,
    text: str,
    tokens: int,
    context: int,
    prompt: int,
    new: int,
    seed: int,
    dtype: str = "float32",
    bits: int | None = None,
    group_size: int | None = None,
    act_bits: int | None = None,
    calibration: str = "builtin",
    samples: int = 32,
    sample_tokens: int = 512,
    task: str = "",
    questions: int = 100,
    data: str = "data/evaluation",
) -> dict[str, float]:
    """Megabytes of the weights, perplexity of a text, the share of right answers, and tokens/s of 1 and of 16 rows.

    Args:
        model: checkpoint, model directory or hub name.
        method: none = the weights in `dtype`, else as `lightning-gpt quantize` takes it.
        text: as held_out_windows.
        tokens: that are foretold.
        context: of each window.
        prompt: tokens before the timed ones.
        new: timed tokens of each row.
        seed: of the windows of text and calibration, of the choice of questions, and of the prompts.
        dtype: of the weights that are not quantized. float16 on a CPU, which has no fast products of it, is rounded to,
            counted as such and computed in float32.
        bits, group_size, act_bits: of `lightning-gpt quantize`; null = as it chooses.
        calibration: as `lightning-gpt quantize`; the text for methods that look at activations.
        samples, sample_tokens: windows of the calibration, and their length.
        task: an evaluation set to ask, such as arc_easy; empty = none.
        questions: of it.
        data: where the sets are.
    """
    net, tokenizer = open_model(model, torch.float32)
    windows = held_out_windows(text, tokenizer, tokens, context, seed)
    if task:
        find_evaluations(task, Path(data))  # that they are there, before work is spent
    net, size = converted(net, dtype)
    if method != "none":
        from lightning_gpt.quantization.calibration import calibration_ids
        from lightning_gpt.quantization.quantize import quantize_network
        from lightning_gpt.quantization.settings import CALIBRATED, Settings

        given = {"bits": bits, "group_size": group_size, "act_bits": act_bits}
        settings = Settings(method, **{name: value for name, value in given.items() if value is not None})
        ids = None
        if method in CALIBRATED:
            ids = calibration_ids(calibration, tokenizer, samples, sample_tokens, net.config.block_size, seed)
        quantize_network(net, settings, ids)
        size = nbytes(net)
    found = {"weights/megabytes": size / 1e6, "val/perplexity": perplexity(net, windows)}
    runner = make_runner(net)
    for rows in (1, 16):
        timing = time_generation(runner, random_prompts(net.config.vocab_size, rows, prompt, seed), new)
        found[f"decode/tokens_per_second_{rows}"] = rows / median(timing.steps)
    if task:
        found["task/accuracy"] = accuracy(net, tokenizer, task, questions, Path(data), seed)
    return found


def converted(net: GPT, dtype: str) -> tuple[GPT, int]:
    """The network in another type, and the bytes of what it saves."""
    if dtype == "float16" and net.token_embedding.weight.device.type == "cpu":
        return net.half().float(), nbytes(net) // 2
    net = net.to(getattr(torch, dtype))
    return net, nbytes(net)


def accuracy(net: GPT, tokenizer: Tokenizer, task: str, questions: int, data: Path, seed: int) -> float:
    """Share of right answers to some questions of a set, drawn by the seed."""
    from lightning_gpt.evaluation.harness import run_evaluations

    asked = find_evaluations(task, data)
    scorer = Scorer(net, say=False)
    return float(run_evaluations(net, tokenizer, asked, data, scorer, limit=questions, seed=seed)[task]["value"])
