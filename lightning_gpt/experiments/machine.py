"""What runs were made on: the processor, the accelerators, the packages."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("lightning_gpt", "torch", "lightning", "numpy", "tokenizers", "bitsandbytes")


def hardware() -> dict[str, Any]:
    """What the runs ran on."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": _cpu_name(), "cores": cores, "threads": torch.get_num_threads(), "gpus": gpus}


def hardware_in_words(hardware: dict[str, Any]) -> str:
    """ "Intel Xeon, 2 core(s), 1 thread(s) a run, NVIDIA A100"."""
    gpus = f", {', '.join(hardware['gpus'])}" if hardware["gpus"] else ""
    threads = f", {hardware['threads']} thread(s) a run" if "threads" in hardware else ""
    return f"{hardware['cpu']}, {hardware['cores']} core(s){threads}{gpus}"


def versions() -> dict[str, str]:
    """Python and the packages that shape results."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
