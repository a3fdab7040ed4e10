"""Parameter groups, optimizers and learning-rate schedules. Names are loaded when first used."""

import importlib

_HOMES = {
    "parameter_groups": "groups",
    "parameter_kinds": "groups",
    "InBackward": "in_backward",
    "Muon": "muon",
    "OptimizerSpec": "optimizers",
    "AdamW": "optimizers",
    "AdamW8bit": "optimizers",
    "MuonAdamW": "optimizers",
    "SGD": "optimizers",
    "ScheduleSpec": "schedules",
    "Constant": "schedules",
    "Cosine": "schedules",
    "InverseSqrt": "schedules",
    "Linear": "schedules",
    "WSD": "schedules",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
