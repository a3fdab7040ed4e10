"""The most memory that a piece of work held."""

import contextlib
from pathlib import Path

import psutil
import torch


class PeakMemory:
    """Within: the largest memory, in `bytes` afterwards: of a GPU what was allocated, else what the process held."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
            return
        try:
            status = Path("/proc/self/status").read_text()
            self.bytes = 1024 * int(status.partition("VmHWM:")[2].split()[0])
        except (OSError, IndexError):
            self.bytes = psutil.Process().memory_info().rss
