"""A run's settings as flat dotted names, and the few of them that a table of runs needs."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from lightning_gpt.nn import GPTConfig

CURATED = (
    "model",
    "model.config.n_layer",
    "model.config.n_head",
    "model.config.n_embd",
    "model.config.position",
    "model.config.norm",
    "model.config.feed_forward",
    "model.init_from",
    "model.optimizer",
    "model.schedule",
    "data.data_dir",
    "data.batch_size",
    "data.block_size",
    "trainer.max_steps",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.precision",
    "trainer.devices",
    "seed_everything",
)
"""What tells runs apart, whatever their task. Optimizer's and schedule's own numbers come beside them, and the fields
of the network that are not at their defaults."""
UNINTERESTING = ("eps", "fused", "foreach", "capturable")
_AT_DEFAULT = {
    field.name: field.default_factory() if field.default_factory is not MISSING else field.default
    for field in fields(GPTConfig)
}


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings -> {dotted name: value}, as they are typed on the command line.

    `init_args` is left out of names, a `class_path` becomes its owner's value: {"model.optimizer": "AdamW",
    "model.optimizer.lr": 1e-3}.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if key == "class_path" and prefix:
            flat[prefix] = str(value).rpartition(".")[2]
        elif not isinstance(value, Mapping):
            flat[name] = value
        elif key == "init_args" and prefix:
            flat |= flat_settings(value, prefix)
        elif value:
            flat |= flat_settings(value, name)
    return flat


def curated_settings(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Of all the settings of `fit`, some twenty that a table of runs should have as columns.

    Args:
        config: nested, as in config.yaml.
    """
    flat = flat_settings(config)
    names = [name for name in CURATED if name in flat]
    for name, value in flat.items():
        group, _, leaf = name.rpartition(".")
        tuned = group in ("model.optimizer", "model.schedule") and leaf not in UNINTERESTING
        expert = name.startswith("model.config.moe.")
        special = group == "model.config" and value != _AT_DEFAULT.get(leaf, value)
        if (tuned or expert or special) and value is not None:
            names.append(name)
    return {name: _plain(flat[name]) for name in dict.fromkeys(names) if flat[name] is not None}


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
