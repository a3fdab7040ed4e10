"""Which collectives a piece of training issues and how many bytes it gives them, as PyTorch's flight recorder saw it.

The recorder always runs (TORCH_FR_BUFFER_SIZE entries, 2,000 unless set), so that watching costs nothing while the step
runs. It also sees what is issued outside Python or in other threads: DDP's buckets, PowerSGD's factors, FSDP's gathers.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch._C import _distributed_c10d as c10d

BYTES = {
    "Double": 8,
    "Long": 8,
    "Float": 4,
    "Int": 4,
    "Half": 2,
    "BFloat16": 2,
    "Short": 2,
}
"""Of an element, by the recorder's name of the dtype; others (Byte, Char, Bool, 8-bit floats) take one."""


@dataclass(frozen=True)
class Collective:
    """One operation among processes, as this rank issued it."""

    name: str
    """all_reduce, broadcast, all_gather, reduce_scatter, ... without the backend."""
    dtype: str
    """Of the tensors, as the recorder names it: Float, Half, BFloat16, Long, ..."""
    bytes: int
    """Of the tensor that the ranks share in it: what is reduced, broadcast, scattered, or gathered in the end."""


class Collectives(list[Collective]):
    """What was issued, in order."""

    def named(self, *names: str) -> "Collectives":
        """Those of some names only."""
        return Collectives(one for one in self if one.name in names)

    @property
    def bytes(self) -> int:
        """All of them together."""
        return sum(one.bytes for one in self)


def _size(shapes: list[list[int]], dtypes: list[str]) -> int:
    return sum(prod(shape) * BYTES.get(dtype, 1) for shape, dtype in zip(shapes, dtypes))


def _collective(entry: dict[str, Any]) -> Collective:
    dtypes = entry["input_dtypes"] or entry["output_dtypes"] or [""]
    size = max(
        _size(entry["input_sizes"], entry["input_dtypes"]),
        _size(entry["output_sizes"], entry["output_dtypes"]),
    )
    return Collective(entry["profiling_name"].partition(":")[2].strip("_"), dtypes[0], size)


def _entries() -> list[dict[str, Any]]:
    """All that the recorders of gloo and NCCL still hold, the oldest first."""
    dumps = [c10d._dump_fr_trace_json()]
    if torch.cuda.is_available() and hasattr(c10d, "_dump_nccl_trace_json"):
        dumps.append(c10d._dump_nccl_trace_json())
    found = [
        {"backend": number, **entry}
        for number, dump in enumerate(dumps)
        for entry in json.loads(dump).get("entries", [])
    ]
    return sorted(found, key=lambda entry: entry["time_created_ns"])


def _last_records(entries: list[dict[str, Any]]) -> dict[int, int]:
    """Backend -> number of its newest entry."""
    last: dict[int, int] = {}
    for entry in entries:
        last[entry["backend"]] = max(last.get(entry["backend"], -1), entry["record_id"])
    return last


@contextmanager
def recorded_collectives() -> Iterator[Collectives]:
    """with recorded_collectives() as collectives: a step; the list is filled when the block ends.

    Raises:
        RuntimeError: more was issued in the block than the recorder keeps.
    """
    before = _last_records(_entries())
    collectives = Collectives()
    yield collectives
    new = [entry for entry in _entries() if entry["record_id"] > before.get(entry["backend"], -1)]
    for backend in {entry["backend"] for entry in new}:
        first = min(entry["record_id"] for entry in new if entry["backend"] == backend)
        if first > before.get(backend, -1) + 1:
            raise RuntimeError(
                "more collectives than the flight recorder keeps: set the environment's TORCH_FR_BUFFER_SIZE higher, "
                "or record a shorter piece"
            )
    collectives.extend(_collective(entry) for entry in new)
