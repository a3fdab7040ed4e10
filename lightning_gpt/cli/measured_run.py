"""Settings under which `fit` runs a few steps that only a callback looks at."""

from pathlib import Path
from typing import Any


def measured_settings(place: Path, steps: int, callback: dict[str, Any]) -> dict[str, Any]:
    """To be stacked over a task's files: no validation, samples or curve, every step logged, all of it under `place`.

    Args:
        place: a temporary directory.
        steps: optimizer steps.
        callback: class_path and init_args; the files' own callbacks are left out.
    """
    return {
        "run": {"dir": str(place), "name": "measured", "tensorboard": False},
        "samples": {"tokens": 0},
        "curve": {"enabled": False},
        "last": {"every_n_steps": None, "every_n_minutes": None},
        "trainer": {
            "max_steps": steps,
            "limit_val_batches": 0,
            "log_every_n_steps": 1,
            "callbacks": [callback],
        },
    }
