"""Accelerators: what they compute, hold, draw and cost, and what a run takes on them."""

import difflib
import math
import re
from dataclasses import dataclass, replace

PRICES_OF = "May 2026"
"""Age of `price`: on demand, without a contract, at clouds that rent out little else. A100, H100 and H200 are middles
of published overviews; the others are rough and not looked up. The same card costs half at the cheapest and twice at
the largest clouds, so give --price where money is at stake."""


@dataclass(frozen=True)
class Accelerator:
    """One device."""

    name: str
    title: str
    peak_flops: float
    """Dense matrix products a second in bfloat16 (float16 where there is none), as makers state it; half of
    what a sheet "with sparsity" says. 0 = must be measured."""
    memory: float
    """Bytes; 0 = unknown."""
    watts: float
    """Of the board at its limit, without host, network and cooling; 0 = not published."""
    price: float
    """US dollars for one device and hour, see PRICES_OF; 0 = unknown."""
    bandwidth: float = 0
    """Bytes a second of its own memory, as makers state it; 0 = unknown."""
    link: str = ""
    """The quickest that joins several in a node (planning/interconnect.py); empty = not planned for here."""


G = 1e9
_ALL = (
    Accelerator("a100-40gb", "NVIDIA A100 SXM 40 GB", 312e12, 40 * G, 400, 1.10, 1555 * G, "nvlink3"),
    Accelerator("a100-80gb", "NVIDIA A100 SXM 80 GB", 312e12, 80 * G, 400, 1.30, 2039 * G, "nvlink3"),
    Accelerator("h100-pcie", "NVIDIA H100 PCIe", 756e12, 80 * G, 350, 2.40, 2000 * G, "pcie5"),
    Accelerator("h100", "NVIDIA H100 SXM", 989e12, 80 * G, 700, 3.00, 3350 * G, "nvlink4"),
    Accelerator("h200", "NVIDIA H200 SXM", 989e12, 141 * G, 700, 4.00, 4800 * G, "nvlink4"),
    Accelerator("b200", "NVIDIA B200", 2250e12, 180 * G, 1000, 5.50, 8000 * G, "nvlink5"),
    Accelerator("l4", "NVIDIA L4", 121e12, 24 * G, 72, 0.60, 300 * G, "pcie4"),
    Accelerator("l40s", "NVIDIA L40S", 362e12, 48 * G, 350, 1.00, 864 * G, "pcie4"),
    Accelerator("a10", "NVIDIA A10", 125e12, 24 * G, 150, 0.75, 600 * G, "pcie4"),
    Accelerator("rtx-3090", "NVIDIA RTX 3090", 71e12, 24 * G, 350, 0.25, 936 * G, "pcie4"),
    Accelerator("rtx-4090", "NVIDIA RTX 4090", 165e12, 24 * G, 450, 0.45, 1008 * G, "pcie4"),
    Accelerator("t4", "NVIDIA T4 (float16)", 65e12, 16 * G, 70, 0.35, 320 * G, "pcie3"),
    Accelerator("v100", "NVIDIA V100 SXM 32 GB (float16)", 125e12, 32 * G, 300, 0.55, 900 * G, "nvlink2"),
    Accelerator("mi300x", "AMD MI300X", 1307e12, 192 * G, 750, 2.50, 5300 * G, "infinity-fabric"),
    Accelerator("tpu-v4", "Google TPU v4", 275e12, 32 * G, 192, 3.22, 1228 * G),
    Accelerator("tpu-v5e", "Google TPU v5e", 197e12, 16 * G, 0, 1.20, 819 * G),
    Accelerator("tpu-v5p", "Google TPU v5p", 459e12, 95 * G, 0, 4.20, 2765 * G),
    Accelerator("tpu-v6e", "Google TPU v6e", 918e12, 32 * G, 0, 2.70, 1640 * G),
    Accelerator("cpu", "processor", 0, 0, 0, 0, 10 * G, "loopback"),
)
ACCELERATORS = {one.name: one for one in _ALL}
"""Name -> device. To add one, add a line."""
ALIASES = {"a100": "a100-80gb", "h100-sxm": "h100", "h100-80gb": "h100", "h200-sxm": "h200", "4090": "rtx-4090"}
ALIASES |= {"3090": "rtx-3090", "rtx4090": "rtx-4090", "rtx3090": "rtx-3090", "a100-40": "a100-40gb"}
ALIASES |= {"a100-80": "a100-80gb", "v4": "tpu-v4", "v5e": "tpu-v5e", "v5p": "tpu-v5p"}


def find_accelerator(name: str) -> Accelerator:
    """A device by its name; case, spaces and underscores do not matter.

    Raises:
        ValueError: unknown; names the nearest.
    """
    key = re.sub(r"[\s_]+", "-", name.strip().lower())
    key = ALIASES.get(key, key)
    if key in ACCELERATORS:
        return ACCELERATORS[key]
    near = difflib.get_close_matches(key, [*ACCELERATORS, *ALIASES], n=1, cutoff=0.4)
    hint = f", did you mean {near[0]}?" if near else ""
    raise ValueError(f"gpus: accelerator {name!r} is unknown{hint} (known: {', '.join(ACCELERATORS)})")


def check_utilisation(utilisation: float) -> None:
    """Whether it is a share.

    Raises:
        ValueError: it is not.
    """
    if not 0 < utilisation <= 1:
        raise ValueError(
            f"utilisation={utilisation:g} is no share of the peak: use 0 < utilisation <= 1 "
            "(0.3 to 0.5 is usual for large runs)"
        )


@dataclass(frozen=True)
class Machine:
    """Some devices of one kind, and how well they are used."""

    accelerator: Accelerator
    devices: int = 1
    utilisation: float = 0.4
    """Share of the peak that the analytic count of a run reaches (MFU; Chowdhery et al., 2022, appendix B)."""

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"gpus: {self.devices} devices, at least 1 is needed")
        check_utilisation(self.utilisation)
        peak = self.accelerator.peak_flops
        if not (math.isfinite(peak) and peak > 0):
            raise ValueError(
                f"the peak of {self.accelerator.name} is {peak:g} FLOP/s: measure it (lightning-gpt fit logs "
                "speed/tflops) and give --peak_flops"
            )

    @property
    def flops_per_second(self) -> float:
        """Of all devices, as used."""
        return self.devices * self.accelerator.peak_flops * self.utilisation

    def flops(self, days: float) -> float:
        """What they compute in some days.

        Raises:
            ValueError: days are not positive.
        """
        if not (math.isfinite(days) and days > 0):
            raise ValueError(f"days={days:g} must be positive")
        return self.flops_per_second * 86400 * days

    def hours(self, flops: float) -> float:
        """Of wall-clock time for some FLOPs."""
        return flops / self.flops_per_second / 3600

    def dollars(self, flops: float) -> float | None:
        """None: the price is unknown."""
        price = self.accelerator.price
        return self.hours(flops) * self.devices * price if price else None

    def kilowatt_hours(self, flops: float) -> float | None:
        """Of the boards alone; None: their power is unknown."""
        watts = self.accelerator.watts
        return self.hours(flops) * self.devices * watts / 1000 if watts else None


def parse_machine(
    text: str, utilisation: float = 0.4, price: float | None = None, peak_flops: float | None = None
) -> Machine:
    """ "8xA100" -> 8 of them, "H100" -> one.

    Args:
        text: number, x, name.
        utilisation: see Machine.
        price: dollars for one device and hour instead of the table's.
        peak_flops: measured or other peak of one device instead of the table's.

    Raises:
        ValueError: it reads otherwise, or a number that cannot be.
    """
    match = re.fullmatch(r"\s*(?:(-?\d+)\s*[x*×]\s*)?(\S.*?)\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"gpus={text!r} must read like 8xA100")
    accelerator = find_accelerator(match[2])
    if price is not None:
        if not (math.isfinite(price) and price >= 0):
            raise ValueError(f"price={price:g} must not be negative (dollars for one device and hour)")
        accelerator = replace(accelerator, price=price)
    if peak_flops is not None:
        if not (math.isfinite(peak_flops) and peak_flops > 0):
            raise ValueError(f"peak_flops={peak_flops:g} must be positive (FLOP/s of one device)")
        accelerator = replace(accelerator, peak_flops=peak_flops)
    return Machine(accelerator, int(match[1] or 1), utilisation)
