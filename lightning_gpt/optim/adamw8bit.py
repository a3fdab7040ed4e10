"""bitsandbytes' block-wise 8-bit AdamW (Dettmers et al., 2022, arXiv:2110.02861), with the bits chosen by group."""

import logging
from typing import Any

# On import its CPU backend warns that an optional 4-bit kernel is absent; the optimizers do not use it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

try:
    import bitsandbytes
except ImportError as error:
    raise ModuleNotFoundError(
        "AdamW8bit needs the package bitsandbytes: pip install 'lightning_gpt[quant]'", name="bitsandbytes"
    ) from error


class GroupwiseAdamW8bit(bitsandbytes.optim.AdamW8bit):
    """`bitsandbytes.optim.AdamW8bit` that takes `optim_bits` (8 or 32) from the group.

    bitsandbytes' own way, `GlobalOptimManager.override_config`, keys its settings by `id(parameter)` in a process-wide
    singleton, where they outlive the parameter and may fall on another one.
    """

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """Settings of one parameter (called by bitsandbytes)."""
        return {**super().get_config(gindex, pindex, group), "optim_bits": group.get("optim_bits", 8)}
