"""What all ranks must have in common, compared before they train: settings, data, code and packages."""

import functools
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from torch.distributed import Store

PACKAGES = ("lightning_gpt", "torch", "lightning", "numpy", "tokenizers", "transformers", "peft")
MAY_DIFFER = (
    "trainer.devices",
    "data.num_workers",
    "progress.",
    "ckpt_path",  # rank 0's is taken
    "config",
)
"""Settings that belong to a machine, and prefixes of such."""
SHOWN = 3


@functools.cache
def code_fingerprint() -> str:
    """Of the source of lightning_gpt as it is installed here, git or not: 12 hexadecimal digits."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of Python, the packages that numbers depend on, and our own code."""
    found = {"python": platform.python_version(), "code of lightning_gpt": code_fingerprint()}
    for package in PACKAGES:
        try:
            found[f"version of {package}"] = version(package)
        except PackageNotFoundError:
            found[f"version of {package}"] = "none"
    return found


def must_agree(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, as flat dotted names, that may not differ between ranks."""
    return {
        name: value
        for name, value in settings.items()
        if not any(name == free or (free.endswith(".") and name.startswith(free)) for free in MAY_DIFFER)
    }


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], rank: int) -> list[str]:
    """ "rank 1 has data.batch_size=4, rank 0 has 2" for each fact that differs.

    Args:
        mine: of `rank`.
        theirs: of rank 0.
        rank: who `mine` is.
    """
    missing = "nothing"
    return [
        f"rank {rank} has {name}={mine.get(name, missing)}, rank 0 has {theirs.get(name, missing)}"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name, missing) != theirs.get(name, missing)
    ]


def check_agreement(store: Store, rank: int, world_size: int, facts: Mapping[str, Any]) -> None:
    """Compares every rank's facts with rank 0's. Called by all ranks; all of them raise, or none.

    Args:
        store: shared by them, used by nothing else under these names.
        rank: this one.
        world_size: how many there are.
        facts: flat names -> JSON values.

    Raises:
        ValueError: names ranks, facts and values.
    """
    mine = json.loads(json.dumps(dict(facts), default=str))
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
    if rank == 0:
        store.multi_set(["facts", "digest"], [json.dumps(mine), digest])
        verdicts = [json.loads(store.get(f"verdict/{other}")) for other in range(1, world_size)]
        lines = [line for verdict in verdicts for line in verdict]
        store.set("agreement", json.dumps(summary(lines)))
    else:
        same = store.get("digest").decode() == digest
        found = [] if same else differences(mine, json.loads(store.get("facts")), rank)
        store.set(f"verdict/{rank}", json.dumps(found))
    message = json.loads(store.get("agreement"))
    if message:
        raise ValueError(message)


def summary(lines: list[str]) -> str:
    """One line of what differs; many ranks that differ alike are counted, not listed."""
    if not lines:
        return ""
    told = sorted(lines, key=lambda line: line.partition(" has ")[2])
    groups = [list(group) for _, group in groupby(told, key=lambda line: line.partition(" has ")[2])]
    groups.sort(key=len, reverse=True)
    shown = [group[0] + (f" (and {len(group) - 1} more ranks)" if len(group) > 1 else "") for group in groups[:SHOWN]]
    more = f"; and {len(groups) - SHOWN} more differences" if len(groups) > SHOWN else ""
    return "ranks were not started alike: " + "; ".join(shown) + more
