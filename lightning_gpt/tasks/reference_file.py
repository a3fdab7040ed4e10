"""The reference's log-probabilities of all pairs, computed once and kept in a file that knows what it is of."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_gpt.nn.loss import IGNORE_INDEX
from lightning_gpt.objectives.log_probs import sequence_log_probs

if TYPE_CHECKING:
    from lightning_gpt.tasks.referenced import Referenced


class ReferenceFile:
    """Sums of log-probabilities and numbers of tokens, (2, pairs) for each split: chosen and rejected.

    Args:
        path: a .safetensors file; written when it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tables: dict[str, Tensor] = {}

    def prepare(self, task: Referenced) -> None:
        """Reads the file, or computes and writes it with the task's network as it is now.

        Raises:
            ValueError: it is of other data or another model; or it is missing where training has begun already.
        """
        data = task.trainer.datamodule
        about = {"model": task.base_fingerprint, "data": data.fingerprint}
        if self.path.exists():
            self._read(about)
            return
        if task.trainer.ckpt_path:
            raise ValueError(
                f"model.reference_file={self.path} is missing, and the network has learnt since: bring the file back, "
                "or begin the run anew"
            )
        tables = {split: self._compute(task, split) for split in ("train", "val") if data.examples(split)}
        if task.trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            save_file(tables, temporary, metadata={"about": json.dumps(about)})
            os.replace(temporary, self.path)
        task.trainer.strategy.barrier()
        self._tables = tables

    def look_up(self, split: str, index_B: Tensor, mean: bool) -> Tensor:
        """Of these pairs, (2B,): the chosen, then the rejected."""
        sums, counts = self._tables[split][:, :, index_B.cpu()]
        return ((sums / counts) if mean else sums).flatten()

    def _read(self, about: dict[str, str]) -> None:
        try:
            with safe_open(self.path, "pt") as file:
                theirs = json.loads((file.metadata() or {}).get("about", "{}"))
                tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"model.reference_file={self.path} cannot be read: {error}") from None
        stale = [what for what in about if theirs.get(what) != about[what]]
        if stale:
            raise ValueError(
                f"model.reference_file={self.path} was computed with another {' and another '.join(stale)}: delete it "
                "to have it computed again, or name another file"
            )
        self._tables = tables

    @torch.no_grad()
    def _compute(self, task: Referenced, split: str) -> Tensor:
        """(2 sums and counts, 2 chosen and rejected, pairs), every rank all of them."""
        from lightning_gpt.tasks.referenced import answer_log_probs

        data, net = task.trainer.datamodule, task.net
        examples = data.examples(split)
        table = torch.zeros(2, 2, len(examples))
        told = time.monotonic()
        for start in range(0, len(examples), data.val_batch_size):
            batch = data.collate(examples[start : start + data.val_batch_size])
            ids, targets = batch["input_ids"].to(task.device), batch["targets"].to(task.device)
            with task.trainer.precision_plugin.forward_context():
                sums = sequence_log_probs(answer_log_probs(net, ids, targets)[0], targets)
            counts = (targets != IGNORE_INDEX).sum(-1)
            table[0][:, batch["index"]] = sums.float().cpu().view(2, -1)
            table[1][:, batch["index"]] = counts.float().cpu().view(2, -1)
            if time.monotonic() - told > 5 and task.trainer.is_global_zero:
                told = time.monotonic()
                print(f"reference: {start + len(batch['index']):,} of {len(examples):,} pairs", file=sys.stderr)
        return table
