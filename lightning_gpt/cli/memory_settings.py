"""From the settings of `lightning-gpt fit` to the run whose memory is planned."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_gpt.nn import GPTConfig
from lightning_gpt.optim import AdamW, OptimizerSpec
from lightning_gpt.planning.memory_job import DEVICES, PRECISIONS, STRATEGIES, TrainingJob, choose

PRECISION_NAMES = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed", "None": "32-true"}
"""Lightning's older names."""


def training_job(
    settings: Any,
    devices: int | None = None,
    strategy: str | None = None,
    device: str | None = None,
    vocab_size: int | None = None,
) -> TrainingJob:
    """The run that fit would make.

    Args:
        settings: of fit, parsed, defaults included.
        devices, strategy, device: instead of the settings'.
        vocab_size: where the corpus is not prepared here.

    Raises:
        ValueError: another task's settings, a corpus that is missing, a figure that cannot be.
    """
    model, data, trainer = settings.model, settings.data, settings.trainer
    fields = model.init_args.get("config")
    if fields is None or data.init_args.get("data_dir") is None:
        raise ValueError(
            f"memory is planned for lightning_gpt.tasks.Pretraining over TokenData, not for {model.class_path} over "
            f"{data.class_path}"
        )
    where = device or _device(str(trainer.accelerator))
    precision = PRECISION_NAMES.get(str(trainer.precision), str(trainer.precision))
    if where == "cpu" and precision.startswith("16"):
        raise ValueError(
            f"trainer.precision={precision} needs a GPU: on CPU use bf16-mixed or 32-true, or --device cuda"
        )
    ids, validates = _corpus(data.init_args.data_dir, vocab_size)
    tokens = data.init_args.block_size
    longest = max(tokens, data.init_args.val_block_size or 0)
    config = GPTConfig.from_dict({**_plain(fields), "vocab_size": ids, "block_size": longest})
    if model.init_args.get("init_from"):
        from lightning_gpt.cli.plan import named_config

        config = named_config(model.init_args.init_from)
    count = _count(trainer) if devices is None else devices
    plan, view = _strategy(trainer.strategy, count) if strategy is None else (strategy, False)
    choose("strategy", plan, STRATEGIES)
    if count < 1:
        raise ValueError(f"devices={count} must be at least 1")
    validates = validates and trainer.limit_val_batches != 0
    # Rows of a sharded network are not sampled.
    samples = len(settings.samples.prompts) if plan != "fsdp" and validates else 0
    return TrainingJob(
        config,
        data.init_args.batch_size,
        tokens,
        _optimizer(model.init_args.get("optimizer")),
        choose("trainer.precision", precision, PRECISIONS),
        where,
        "ddp" if count > 1 and plan == "single" else plan,
        count,
        int(trainer.accumulate_grad_batches or 1),
        model.init_args.get("activation_checkpointing") or 0,
        data.init_args.val_batch_size if validates else 0,
        data.init_args.val_block_size,
        data.init_args.documents == "separate",
        data.init_args.num_workers > 0,
        view,
        samples,
        settings.samples.tokens,
    )


def _device(accelerator: str) -> str:
    if accelerator == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return choose("trainer.accelerator", {"gpu": "cuda"}.get(accelerator, accelerator), DEVICES)


def _count(trainer: Any) -> int:
    """Devices of all nodes; "auto" counts the GPUs of this machine, or one."""
    import torch

    devices, nodes = trainer.devices, int(trainer.num_nodes or 1)
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return nodes * len(devices)
    if str(devices) in ("auto", "-1"):
        return nodes * max(torch.cuda.device_count() if str(trainer.accelerator) != "cpu" else 1, 1)
    if not str(devices).lstrip("-").isdigit():
        raise ValueError(f"trainer.devices={devices!r} cannot be counted: give --devices")
    return nodes * int(devices)


def _strategy(strategy: Any, devices: int) -> tuple[str, bool]:
    """(name, whether DDP's gradients live in its buckets) of trainer.strategy."""
    if isinstance(strategy, str):
        name, options = strategy, {}
    else:
        name, options = strategy.class_path.rpartition(".")[2], strategy.get("init_args") or {}
    if name in ("auto", "SingleDeviceStrategy"):
        return ("ddp" if devices > 1 else "single"), False
    if name.startswith("ddp") or name in ("DDPStrategy", "DataParallel"):
        view = options.get("gradient_as_bucket_view", name == "DataParallel")  # whose default it is
        return ("ddp" if devices > 1 else "single"), bool(view)
    if name == "TensorParallel" or options.get("tensor_parallel", 1) != 1:
        raise ValueError(
            f"trainer.strategy={name} cuts layers: `lightning-gpt plan parallel -c ...` counts their parts"
        )
    if name in ("fsdp", "FullySharded", "FSDPStrategy", "ModelParallelStrategy"):
        return "fsdp", False
    raise ValueError(f"trainer.strategy={name} is unknown to the memory planner: give --strategy ddp or fsdp")


def _corpus(data_dir: str, given: int | None) -> tuple[int, bool]:
    """Size of the vocabulary, and whether there is a validation split."""
    from lightning_gpt.data.corpus_meta import META_FILE, CorpusMeta

    if given is not None:
        if given < 1:
            raise ValueError(f"vocab_size={given} must be at least 1")
        return given, True
    if not (Path(data_dir) / META_FILE).is_file():
        raise ValueError(f"data_dir={data_dir} is not prepared here, so the vocabulary is unknown: give --vocab_size")
    meta = CorpusMeta.load(data_dir)
    return meta.tokenizer.vocab_size, "val" in meta.splits


def _optimizer(chosen: Any) -> OptimizerSpec:
    if chosen is None:
        return AdamW()
    module, _, name = chosen.class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)(**_plain(chosen.get("init_args") or {}))


def _plain(namespace: Any) -> dict[str, Any]:
    return namespace.as_dict() if hasattr(namespace, "as_dict") else dict(namespace)
