"""`lightning-gpt plan parallel`: how to spread a training run over many devices."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_gpt.planning.memory_job import TrainingJob
    from lightning_gpt.planning.parallel_layout import Cluster
    from lightning_gpt.planning.parallel_plan import Proposal

OPTIMIZERS = ("AdamW", "AdamW8bit", "MuonAdamW", "SGD")


def plan_parallel(
    fit: list[str] | None = None,
    gpus: str | None = None,
    params: float | None = None,
    model: str | None = None,
    interconnect: str | None = None,
    per_node: int | None = None,
    cards: int | None = None,
    context: int | None = None,
    global_batch_tokens: float | None = None,
    micro_batch: int | None = None,
    activation_checkpointing: int | None = None,
    tensor: int | None = None,
    precision: str | None = None,
    optimizer: str | None = None,
    style: str = "llama",
    vocab_size: int | None = None,
    utilisation: float = 0.4,
    peak_flops: float | None = None,
    memory: str | None = None,
    figure: str | None = None,
    json: str | None = None,
) -> None:
    """DDP, FSDP, HSDP, tensor parallelism, FSDP with it: memory of a device, time of a step, and what to set.

    The network is that of -c files, of --params or of --model. Nothing is built or run: links follow the alpha-beta
    model, strategies are played through block by block (planning/parallel_step.py), memory is that of `plan memory`.
    benchmarks/parallel_plan.py compares it with processes of a machine.

    Args:
        fit: -c files and dotted settings, said as fit takes them.
        gpus: the machine, such as 8xA100 or 1024xH100.
        params: parameters of a network that is proposed, as in plan scaling.
        model: preset such as gpt2, or a model directory.
        interconnect: within a node (nvlink, pcie, ...), between nodes (infiniband-200g, ethernet-25g, ...), or both
            with a plus, such as pcie+ethernet-25g; null = the device's own, and InfiniBand where NVLink is new.
        per_node: devices of a node; null = 8.
        cards: network cards of a node; null = one for each device with InfiniBand, else one.
        context: tokens of a window; null = of the files or the network, 2,048 at most.
        global_batch_tokens: of an optimizer step, all devices; null = of the files, or by the network's size.
        micro_batch: windows of one forward pass; null = the quickest that fits.
        activation_checkpointing: 0 = off, n = every n-th block is computed again; null = the quicker that fits.
        tensor: degree of tensor parallelism; null = all that divide the network.
        precision: as trainer.precision; null = of the files, or bf16-mixed.
        optimizer: AdamW, AdamW8bit, MuonAdamW or SGD; null = of the files, or AdamW.
        style: of params: llama or gpt.
        vocab_size: ids of the vocabulary, where the corpus is not prepared here or params is given.
        utilisation: share of its peak that computing reaches where nothing is waited for.
        peak_flops: FLOP/s of one device, instead of the table's; cpu needs it.
        memory: of one device, such as 24GiB, instead of the table's.
        figure: PNG of times, memory and scaling.
        json: file for all numbers.
    """
    from lightning_gpt.parallel.memory_size import parse_memory
    from lightning_gpt.planning.accelerators import parse_machine
    from lightning_gpt.planning.parallel_layout import check_tensor, make_cluster
    from lightning_gpt.planning.parallel_plan import global_windows, propose

    if gpus is None:
        raise ValueError("gpus: name the machine, such as --gpus 8xA100")
    cluster = make_cluster(parse_machine(gpus, utilisation, None, peak_flops), interconnect, per_node, cards)
    given = [name for name, value in (("-c", fit), ("--params", params), ("--model", model)) if value]
    if len(given) != 1:
        raise ValueError(f"name the network by exactly one of -c, --params, --model; got {', '.join(given) or 'none'}")
    device = "cpu" if cluster.machine.accelerator.name == "cpu" else "cuda"
    if fit:
        base, settings = _of_files(fit, device, vocab_size)
    else:
        base, settings = _of_name(params, model, style, vocab_size, context, device), None
    base, tokens = _changed(base, context, precision, optimizer, global_batch_tokens)
    if tensor is not None:
        check_tensor(base.config, cluster, tensor)
    for name, value, least in (
        ("micro_batch", micro_batch, 1),
        ("activation_checkpointing", activation_checkpointing, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    windows = global_windows(tokens, base.block_size, cluster.devices)
    budget = None if memory is None else parse_memory(memory)
    found = propose(base, cluster, windows, budget, micro_batch, activation_checkpointing, tensor)
    print(_head(base, cluster, tokens, windows))
    print(f"\n{_table(found)}\n")
    print(_advice(found, base, cluster, settings))
    if json:
        _write_json(json, base, cluster, found)
        print(f"\n{json}")
    if figure:
        from pathlib import Path

        from lightning_gpt.planning.parallel_figure import draw_parallel

        print(f"\n{draw_parallel(Path(figure), base, cluster, found)}")


def _of_files(fit: list[str], device: str, vocab_size: int | None) -> tuple["TrainingJob", Any]:
    from lightning_gpt.cli.memory_settings import training_job
    from lightning_gpt.cli.settings_check import parsed_arguments

    settings = parsed_arguments(fit)
    return training_job(settings, 1, "single", device, vocab_size), settings


def _of_name(
    params: float | None, model: str | None, style: str, vocab_size: int | None, context: int | None, device: str
) -> "TrainingJob":
    from dataclasses import replace

    from lightning_gpt.cli.plan import named_config
    from lightning_gpt.planning.memory_job import TrainingJob
    from lightning_gpt.planning.shapes import find_shape

    if model:
        config = named_config(model)
        config = replace(config, vocab_size=vocab_size) if vocab_size else config
    else:
        config = find_shape(params, style, vocab_size, context)
    window = min(config.block_size, 2048)
    precision = "bf16-mixed" if device == "cuda" else "32-true"
    return TrainingJob(config, 1, window, precision=precision, device=device, val_batch_size=0)


def _changed(
    base: "TrainingJob",
    context: int | None,
    precision: str | None,
    optimizer: str | None,
    global_batch_tokens: float | None,
) -> tuple["TrainingJob", float]:
    """The run with what the options say, and tokens of its global batch."""
    from dataclasses import replace

    from lightning_gpt import optim
    from lightning_gpt.nn.flops import parameters
    from lightning_gpt.planning.memory_job import choose
    from lightning_gpt.planning.parallel_plan import default_global_tokens

    if global_batch_tokens is not None and not 1 <= global_batch_tokens < float("inf"):
        raise ValueError(f"global_batch_tokens={global_batch_tokens:g} must be at least 1")
    asked = base.tokens * base.accumulate
    tokens = global_batch_tokens or (asked if base.batch_size > 1 else default_global_tokens(parameters(base.config)))
    if context is not None:
        if not 1 <= context <= base.config.block_size:
            raise ValueError(
                f"context={context} must be between 1 and the network's block_size={base.config.block_size}"
            )
        base = replace(base, block_size=context, val_block_size=None)
    if precision is not None:
        base = replace(base, precision=precision)
    if optimizer is not None:
        base = replace(base, optimizer=getattr(optim, choose("optimizer", optimizer, OPTIMIZERS))())
    # As configs/trainer/ddp.yaml: gradients live in DDP's buckets.
    return replace(base, val_batch_size=0, bucket_view=True), tokens


def _head(base: "TrainingJob", cluster: "Cluster", tokens: float, windows: int) -> str:
    from lightning_gpt.nn.flops import parameters
    from lightning_gpt.planning.published import short

    config, machine = base.config, cluster.machine
    used = windows * base.block_size
    batch = f"{used:,} tokens, {windows:,} windows of {base.block_size:,}"
    if used != tokens:
        batch += f" ({tokens:g} asked for)"
    within = f"{cluster.within.title}, {cluster.within.bandwidth / 1e9:.3g} GB/s"
    links = f"{cluster.per_node} x {within}" if cluster.per_node > 1 else "one device a node"
    if cluster.nodes > 1:
        each = cluster.between.bandwidth / 1e9
        links += f"; {cluster.nodes} nodes, {cluster.cards} x {cluster.between.title} each, {each:.3g} GB/s a card"
    rows = [
        (
            "network",
            f"{short(parameters(config))} parameters: {config.n_layer} layers, width {config.n_embd}, {config.n_head} "
            f"heads, feed-forward {config.hidden_size}, vocabulary {config.vocab_size:,}",
        ),
        ("global batch", batch),
        ("training", f"{base.precision}, {type(base.optimizer).__name__}"),
        (
            "machine",
            f"{cluster.devices} x {machine.accelerator.title} at {machine.utilisation:.0%} of "
            f"{machine.accelerator.peak_flops / 1e12:.4g} TFLOP/s",
        ),
        ("links", links),
    ]
    return "\n".join(f"{name:<13} {text}" for name, text in rows)


def _table(found: list["Proposal"]) -> str:
    heading = ("strategy", "windows", "passes", "recompute", "GB", "step s", "compute", "comm.", "waiting", "optimizer")
    rows = [(*heading, "efficiency", "MFU", "tokens/s", "fits")]
    for one in found:
        step, every = one.step, one.layout.checkpoint_every
        seconds = [f"{x:.3g}" for x in (step.total, step.compute, step.exposed, step.waiting, step.optimizer)]
        again = "no" if not every else "all" if every == 1 else f"1 of {every}"
        cut = (one.layout.title, str(one.layout.micro_batch), str(one.layout.accumulate), again)
        last = (
            f"{step.efficiency:.1%}",
            f"{one.mfu:.1%}",
            f"{one.tokens_per_second:,.0f}",
            "yes" if one.fits else "no",
        )
        rows.append((*cut, f"{one.memory.total / 1e9:.3g}", *seconds, *last))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join([*lines, *(f"{one.layout.title} {one.problem}" for one in found if not one.fits)])


def _advice(found: list["Proposal"], base: "TrainingJob", cluster: "Cluster", settings: Any) -> str:
    from lightning_gpt.planning.parallel_settings import command, hints

    best = found[0]
    if not best.fits:
        return f"nothing fits: {hints(best, base)}"
    return "\n".join(
        [f"recommended: {best.layout.title}", command(best, base, cluster, settings is None), *hints_of_fit(best)]
    )


def hints_of_fit(best: "Proposal") -> list[str]:
    """What the recommended proposal leaves to say."""
    found = []
    if best.step.efficiency < 0.7:
        found.append(
            f"communication and waiting take {1 - best.step.efficiency:.0%} of a step: a larger --global_batch_tokens "
            "or a quicker --interconnect hides more of it"
        )
    return found


def _write_json(path: str, base: "TrainingJob", cluster: "Cluster", found: list["Proposal"]) -> None:
    import json
    import os
    from dataclasses import asdict
    from pathlib import Path

    content = {
        "network": base.config.to_dict(),
        "precision": base.precision,
        "optimizer": type(base.optimizer).__name__,
        "context": base.block_size,
        "devices": cluster.devices,
        "accelerator": cluster.machine.accelerator.name,
        "per_node": cluster.per_node,
        "within": asdict(cluster.within),
        "between": asdict(cluster.between) if cluster.nodes > 1 else None,
        "cards": cluster.cards,
        "utilisation": cluster.machine.utilisation,
        "proposals": [
            {
                **asdict(one.layout),
                "title": one.layout.title,
                "fits": one.fits,
                "problem": one.problem,
                "memory_bytes": one.memory.total,
                "memory_parts": one.memory.parts(),
                "budget_bytes": one.budget,
                "seconds": {**asdict(one.step), "total": one.step.total},
                "efficiency": one.step.efficiency,
                "mfu": one.mfu,
                "tokens_per_second": one.tokens_per_second,
                "tokens_per_step": one.tokens,
            }
            for one in found
        ],
    }
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, place)
