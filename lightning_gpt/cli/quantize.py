"""`lightning-gpt quantize`: a model directory with weights of 8 or 4 bits."""

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lightning_gpt.nn import GPT
    from lightning_gpt.quantization.quantize import LayerReport
    from lightning_gpt.text.tokenizer import Tokenizer

CONTEXT = 1024
"""Tokens of a window in which perplexity is measured, at most."""


def quantize_command(
    model: str,
    out: str,
    method: Literal["rtn", "gptq", "awq", "smoothquant", "llm_int8", "nf4", "fp16", "bf16", "dequantize"] = "rtn",
    bits: Literal[8, 4] | None = None,
    group_size: int | None = None,
    act_bits: int | None = None,
    head: bool = False,
    clip: bool | None = None,
    calibration: str | None = None,
    samples: int = 128,
    tokens: int = 512,
    damping: float = 0.01,
    act_order: bool = True,
    alpha: float = 0.5,
    evaluate: str | None = None,
    evaluate_tokens: int = 16384,
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored",
    seed: int = 0,
) -> None:
    """Write a model with weights of 8 or 4 bits, in compressed-tensors' or bitsandbytes' format where transformers and
    vLLM have the architecture, and a report of what it costs.

    Args:
        model: checkpoint file, run directory, model directory or hub name; takes memory for the model in float32 and
            for one block's statistics.
        out: directory to write; an older model directory there is replaced.
        method: rtn = round to nearest; gptq, awq (best at 4 bits); smoothquant = 8-bit weights and inputs (W8A8);
            llm_int8, nf4 = by bitsandbytes; fp16, bf16 = another float type; dequantize = plain weights from a
            quantized model.
        bits: of each weight: 8 (the default) or 4 (that of nf4).
        group_size: inputs that share a scale, -1 = a whole row; by default whole rows for 8 bits, for 4 the largest of
            128, 64 and 32 that divides the layers.
        act_bits: 8 = inputs are rounded as well while computing (W8A8), with any method of 8 bits.
        head: also the output head; a tied one gets a matrix of its own.
        clip: search every scale for the least error; by default for 4 bits.
        calibration: text for gptq, awq and smoothquant, best of the kind that the model will read: a file, a folder, a
            named corpus, a directory that `prepare` wrote, or builtin (Python's language reference and Shakespeare),
            their default. For other methods: text to measure errors of outputs on.
        samples: windows of the calibration text.
        tokens: in each window, at most the model's context.
        damping: gptq: share of the mean that is added to the Hessian's diagonal.
        act_order: gptq: columns of large inputs first.
        alpha: smoothquant: share of the difficulty that goes from the inputs into the weights.
        evaluate: text (as calibration; of a prepared directory its validation part) on which the perplexity is measured
            before and after.
        evaluate_tokens: of that text.
        dtype: of what stays float: embeddings, norms, biases.
        seed: of the choice of windows.
    """
    import time
    from pathlib import Path

    import torch

    from lightning_gpt.hub import open_model, save_model
    from lightning_gpt.hub.model_directory import check_tokenizer, refuse_other_directory
    from lightning_gpt.hub.quantized_directory import dequantize_network, is_quantized
    from lightning_gpt.quantization.calibration import BUILTIN, calibration_ids
    from lightning_gpt.quantization.progress import BlockProgress
    from lightning_gpt.quantization.quantize import quantize_network
    from lightning_gpt.quantization.settings import CALIBRATED, Settings, group_size_of, nbytes

    refuse_other_directory(Path(out))
    if Path(out).resolve() == Path(model).resolve():
        raise ValueError(f"out={out} is the model itself, which would be lost: choose another place")
    refuse_other_models(model)
    plain = method in ("fp16", "bf16", "dequantize")
    given = (bits, group_size, act_bits, head, clip, damping, act_order, alpha)
    settings = None if plain else Settings(method, *given)
    net, tokenizer = open_model(model)
    if is_quantized(net) != (method == "dequantize"):
        state = "is quantized already: --method dequantize first" if is_quantized(net) else "is not quantized"
        raise ValueError(f"{model} {state}")
    check_tokenizer(net, tokenizer)
    group_size = None if settings is None else group_size_of(net, settings)
    stored, size_before, block_size = net.token_embedding.weight.dtype, nbytes(net), net.config.block_size
    text = calibration or (BUILTIN if method in CALIBRATED else None)
    ids_BT, about = None, None
    if text is not None and settings is not None:
        length = min(tokens, block_size)
        ids_BT = calibration_ids(text, tokenizer, samples, length, block_size, seed)
        about = {"text": text, "samples": samples, "tokens": length}
    measure = _measure_of(evaluate, tokenizer, evaluate_tokens, block_size)
    before = measure(net)
    reports: list[LayerReport] = []
    began = time.monotonic()
    if method == "dequantize":
        dequantize_network(net)
    elif settings is not None:
        with BlockProgress(len(net.blocks)) as progress:
            reports = quantize_network(net.float(), settings, ids_BT, progress)
    seconds = time.monotonic() - began
    target = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(method, stored)
    target = target if dtype == "stored" else getattr(torch, dtype)
    net.to(target)
    content: dict[str, Any] = {
        "model": model,
        "method": method,
        "settings": None if settings is None else asdict(settings) | {"group_size": group_size},
        "calibration": about,
        "bytes": {"before": size_before, "after": nbytes(net)},
        "seconds": seconds,
        "perplexity": None if evaluate is None else {"text": evaluate, "before": before, "after": measure(net)},
        "layers": [asdict(report) for report in reports],
    }
    model_type = save_model(out, net.to(target), tokenizer, dtype=target, report=content)
    print(summary(content, out, model_type))


def refuse_other_models(model: str) -> None:
    """Raises ValueError for what is more than a language model: its other parts would be lost."""
    from pathlib import Path

    from lightning_gpt.hub.llava_opening import is_vision_language
    from lightning_gpt.hub.reward_directory import is_reward_model

    if not Path(model).exists():
        return
    if is_vision_language(model):
        raise ValueError(f"{model} is a vision-language model: only language models can be quantized")
    if is_reward_model(model):
        raise ValueError(f"{model} is a reward model: only language models can be quantized")


def _measure_of(text: str | None, tokenizer: "Tokenizer | None", limit: int, block_size: int) -> Any:
    """Perplexity of a network on a text, as a function; None without a text."""
    import torch

    from lightning_gpt.evaluation.lm_eval_model import first_id
    from lightning_gpt.evaluation.perplexity import perplexity
    from lightning_gpt.evaluation.scoring import Scorer
    from lightning_gpt.quantization.calibration import read_ids

    if text is None:
        return lambda net: None
    if limit < 2:
        raise ValueError(f"evaluate_tokens={limit} must be at least 2")
    ids = read_ids(text, tokenizer, "val", limit).tolist()
    if not ids:
        raise ValueError(f"evaluate={text} is empty")
    prefix = 0 if tokenizer is None else first_id(tokenizer)

    def measure(net: "GPT") -> float:
        half = net.token_embedding.weight.dtype == torch.float16
        # A CPU has no products of float16: the same numbers in float32.
        scorer = Scorer(net.float() if half else net, batch_tokens=2048)
        scorer.limit = min(block_size, CONTEXT)
        return perplexity(scorer, ids, prefix)

    return measure


def summary(content: dict[str, Any], out: str, model_type: str) -> str:
    """The report in lines: size, errors by kind of layer, perplexity, and who reads the directory."""
    from lightning_gpt.quantization.settings import BITSANDBYTES

    sizes, settings, layout = content["bytes"], content["settings"], ""
    if settings is not None:
        groups = f"groups of {settings['group_size']}" if settings["group_size"] else "whole rows"
        layout = f", {settings['bits']} bits" + ("" if settings["method"] in BITSANDBYTES else f", {groups}")
    lines = [
        f"{content['model']} -> {out} ({content['method']}{layout}, {content['seconds']:.1f} s)",
        f"bytes {sizes['before']:,} -> {sizes['after']:,} ({sizes['after'] / sizes['before']:.1%})",
    ]
    kinds: dict[str, list[float]] = {}
    for layer in content["layers"]:
        kinds.setdefault(re.sub(r"^blocks\.\d+\.", "", layer["name"]), []).append(layer["error"])
    what = "outputs" if content["calibration"] else "weights"
    for kind, errors in kinds.items():
        lines.append(f"{kind}: error of {what} {sum(errors) / len(errors):.2%} on average, {max(errors):.2%} at most")
    if content["perplexity"]:
        found = content["perplexity"]
        change = found["after"] / found["before"] - 1
        lines.append(f"perplexity {found['before']:.4f} -> {found['after']:.4f} ({change:+.2%}) on {found['text']}")
    if model_type == "lightning_gpt":
        lines.append("transformers has no linear layers for this network: lightning-gpt alone reads it")
    else:
        lines.append(f"transformers reads it: AutoModelForCausalLM.from_pretrained({out!r})")
    return "\n".join(lines)
