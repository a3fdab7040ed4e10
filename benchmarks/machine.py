"""What a result was measured on."""

import os
import platform
from pathlib import Path


def cpu_model() -> str:
    """The processor's name, as Linux tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_machine() -> dict[str, object]:
    """Processor, cores, memory, GPU, system and the versions that matter."""
    import psutil
    import torch

    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "bf16_instructions": [name for name in ("avx512_bf16", "amx_bf16") if name in flags],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def machine_line(machine: dict[str, object]) -> str:
    """The same in one line for a report."""
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    bf16 = ", ".join(machine["bf16_instructions"]) or "no bf16 instructions"
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores ({bf16}), {machine['memory_gib']} GiB, "
        f"torch {machine['torch']}, Python {machine['python']}"
    )
