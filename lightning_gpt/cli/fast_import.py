"""Importing Lightning without what it does not need.

`import lightning` imports torchmetrics, which imports every optional package it finds installed (transformers,
torchvision, scipy) for metrics that we do not use: more than half of the start-up time. They are hidden from
torchmetrics while it loads; afterwards everybody can import them.
"""

import importlib.abc
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

HIDDEN = ("transformers", "torchvision", "scipy", "torchaudio", "nltk", "pycocotools", "matplotlib")


def _name(requirement: str) -> str:
    """ "torchvision >=0.8" -> "torchvision"."""
    return re.split(r"[\s<>=!~\[;]", requirement.strip(), maxsplit=1)[0]


class _Hider(importlib.abc.MetaPathFinder):
    """Says "no such module" for the hidden packages and for nothing else."""

    def __init__(self, hidden: set[str]) -> None:
        self.hidden = hidden

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self.hidden:
            raise ModuleNotFoundError(f"{fullname} is hidden while torchmetrics loads", name=fullname)
        return None


@contextmanager
def hidden_optional_packages() -> Iterator[None]:
    """Within it, HIDDEN packages can neither be found nor count as installed, except for those already loaded: half
    a package cannot be hidden."""
    from lightning_utilities.core.imports import RequirementCache

    hidden = {name for name in HIDDEN if name not in sys.modules}
    hider, honest = _Hider(hidden), RequirementCache.__bool__

    def installed(self: RequirementCache) -> bool:
        return _name(self.requirement or self.module) not in hidden and honest(self)

    RequirementCache.__bool__ = installed
    sys.meta_path.insert(0, hider)
    try:
        yield
    finally:
        sys.meta_path.remove(hider)
        RequirementCache.__bool__ = honest


def import_lightning() -> None:
    """Loads torchmetrics lean, once, so that a later `import lightning` finds it loaded."""
    if "torchmetrics" not in sys.modules:
        with hidden_optional_packages():
            import torchmetrics  # noqa: F401
