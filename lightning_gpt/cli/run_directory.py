"""Where a run's files go: runs/<name>/version_<n>/ with config.yaml, metrics.jsonl, TensorBoard events, checkpoints."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_gpt.hub.integrity import restore_pointer

VERSION = re.compile(r"version_(\d+)")


@dataclass
class RunConfig:
    """Name and place of a run."""

    name: str = "default"
    """Groups the versions of one study: runs/<name>/version_<n>. --ckpt_path last goes on with the newest that has
    saved, best starts from the newest best.ckpt, auto is last where something has been saved and a new run else: for
    jobs that torchrun, SLURM or Kubernetes start again by the same command."""
    dir: str = "runs"
    """Directory of all runs."""
    tensorboard: bool = True
    """Whether to write TensorBoard events beside metrics.jsonl."""

    @property
    def root(self) -> Path:
        """runs/<name>."""
        return Path(self.dir) / self.name

    def versions(self) -> list[int]:
        """Numbers of the versions that exist, ascending."""
        found = [VERSION.fullmatch(path.name) for path in self.root.glob("version_*")] if self.root.is_dir() else []
        return sorted(int(match[1]) for match in found if match)

    def new_version(self) -> int:
        """The number after the highest."""
        return max(self.versions(), default=-1) + 1

    def with_last(self) -> list[int]:
        """Versions that hold a last.ckpt, ascending; a link to a sharded one that was lost in copying is restored."""
        lasts = {version: self.directory(version) / "checkpoints" / "last.ckpt" for version in self.versions()}
        for last in lasts.values():
            restore_pointer(last)
        return [version for version, last in lasts.items() if last.exists()]

    def newest_with_last(self) -> int:
        """The newest version that holds a last.ckpt.

        Raises:
            ValueError: there is none.
        """
        found = self.with_last()
        if not found:
            raise ValueError(
                f"ckpt_path=last: no checkpoints/last.ckpt in any version under {self.root}: nothing to resume "
                "(ckpt_path=auto starts from the beginning then)"
            )
        return found[-1]

    def directory(self, version: int) -> Path:
        """runs/<name>/version_<n>."""
        return self.root / f"version_{version}"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries -> {dotted.key: value}."""
    if not isinstance(config, dict):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line "key: before -> now" for each setting that differs."""
    old, new = flatten(before), flatten(now)
    keys = sorted(old.keys() | new.keys())
    missing = "(unset)"
    return [f"{k}: {old.get(k, missing)} -> {new.get(k, missing)}" for k in keys if old.get(k) != new.get(k)]
