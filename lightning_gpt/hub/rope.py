"""Rotary settings as transformers writes them in config.json."""

from typing import Any

from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn.rope_scaling import RopeScaling

FIELDS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_block_size",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
    },
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "original_block_size",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
    },
}
"""Kind -> their key -> our field."""


def to_rope(config: GPTConfig) -> dict[str, Any]:
    """The keys of config.json, as transformers 4 and as 5 read them."""
    theta, scaling = config.rope_theta, config.rope_scaling
    if scaling is None or scaling.kind == "ntk":
        if scaling is not None:  # nothing but another base
            theta *= scaling.factor ** (config.rotary_size / max(config.rotary_size - 2, 1))
        return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    values = {their: getattr(scaling, our) for their, our in FIELDS[scaling.kind].items()}
    values = {"rope_type": scaling.kind} | values
    return {"rope_theta": theta, "rope_parameters": values | {"rope_theta": theta}, "rope_scaling": values}


def from_rope(theirs: dict[str, Any], theta: float = 10000.0) -> dict[str, Any]:
    """Fields of a GPTConfig: rope_theta and rope_scaling.

    Args:
        theirs: config.json.
        theta: the architecture's default base.

    Raises:
        ValueError: a kind or a setting that we have no counterpart for.
    """
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = float(rope.get("rope_theta", theirs.get("rope_theta", theta)))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"partial_rotary_factor={rope['partial_rotary_factor']} is not supported in this architecture")
    if kind == "default":
        return {"rope_theta": theta}
    if kind not in FIELDS:
        raise ValueError(f"rope_type={kind!r} is not supported: {', '.join(['default', *FIELDS])} are")
    known = {*FIELDS[kind], "rope_type", "type", "rope_theta", "partial_rotary_factor"}
    extra = sorted(key for key, value in rope.items() if key not in known and value not in (None, True))
    if extra:
        raise ValueError(f"rope_parameters of {kind} with {', '.join(extra)} are not supported")
    values = {our: rope[their] for their, our in FIELDS[kind].items() if rope.get(their) is not None}
    if "factor" not in values:
        raise ValueError(f"rope_type={kind!r} needs rope_parameters.factor: restore it from the original config.json")
    if "original_block_size" in FIELDS[kind].values():
        values.setdefault("original_block_size", theirs.get("max_position_embeddings"))
    return {"rope_theta": theta, "rope_scaling": RopeScaling(kind=kind, **values)}
