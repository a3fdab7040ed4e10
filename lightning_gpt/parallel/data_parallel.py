"""Data-parallel training (DDP): a copy of the network on every device, gradients averaged while backward runs.

Li et al., PyTorch Distributed, VLDB 2020. The reduction is torch's DistributedDataParallel; here are its knobs as
settings of a YAML file, and compression on every backend:

    trainer:
      strategy:
        class_path: lightning_gpt.parallel.data_parallel.DataParallel
        init_args: {compression: bf16}
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

Compression = Literal["none", "fp16", "bf16", "powersgd"]
NAMES = inspect.signature(DistributedDataParallel).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in NAMES else "broadcast_buffers"
"""The argument's name before and since torch 2.15."""
ONE_BUCKET_MB = 2**20
"""A terabyte: more than the gradients of any network that fits on one device."""


def powersgd_in_order(state: PowerSGDState, bucket: dist.GradBucket) -> Future[Tensor]:
    """torch's PowerSGD for backends whose callbacks run in threads of their own (gloo).

    torch's hook reduces the factors P, then Q, in callbacks. NCCL runs them at once in the thread that issues the
    buckets, in the same order on every rank. gloo runs them in whichever of its two threads is free: ranks then issue
    the factors of two buckets in different orders, and reduce one's P with the other's Q; and a callback that waits
    for its reduction keeps a thread that the reduction needs. One bucket after the other is safe, and gives up only
    the overlap of communication with the backward pass.
    """
    future = powerSGD_hook(state, bucket)
    future.wait()
    return future


class DataParallel(DDPStrategy):
    """DDP with its knobs. All but `compression` are exact: the same weights, bit for bit where sums have one order.

    Gradients are reduced once per optimizer step, however many micro-batches it accumulates. Processes are started by
    Lightning (`start_method`), torchrun, SLURM or whatever else Lightning knows the environment of.

    PowerSGD (Vogels et al., 2019) sends two factors of each weight matrix' gradient and adds what they missed to the
    next one. That memory belongs to a rank and is in no checkpoint: a resumed run begins with it empty and with
    `powersgd_start_step` exact steps. It remembers gradients as they were scaled, which 16-mixed changes.

    Args:
        bucket_cap_mb: MiB of gradients that are reduced together, as soon as all of them are there; null = torch's
            choice, 25 with a first bucket of 1. Small buckets start earlier, large ones cost less latency.
        overlap: whether reductions run beside the backward pass; false = one reduction after it, to compare with.
        gradient_as_bucket_view: gradients live in the buckets: saves a copy of all gradients.
        static_graph: promise that every step uses the same parameters in the same way; lets `find_unused_parameters`
            and re-entrant checkpointing work at no cost per step. Refused with accumulation.
        find_unused_parameters: look in every step for parameters that the loss does not depend on; costs a walk
            through the graph, and is needed where ranks or steps leave some out.
        broadcast_buffers: send rank 0's buffers to all at every step; null = only where the network has batch norms.
            Other buffers here are constant, or changed alike on every rank.
        compression: what gradients travel as: none; fp16 or bf16 (half the bytes; fp16 has the finer steps, bf16 the
            range); powersgd.
        powersgd_rank: of the factors; more is closer to the exact gradient and takes more bytes.
        powersgd_start_step: steps that are reduced exactly before PowerSGD begins, at least 2. Early gradients change
            quickly; Vogels et al. and torch advise about a tenth of the run.
        sync_micro_batches: reduce after every micro-batch of an accumulation, to see what skipping it saves.
        start_method: how Lightning starts the processes: popen = the command again; fork = 30 times as quick, on CPU,
            where nothing in this process has computed with several threads before.
        threads_per_process: of matrix products on CPU; null = cores / processes, or OMP_NUM_THREADS.
        process_group_backend: null = nccl on GPUs, gloo on CPU.
        timeout_minutes: after which a collective that others did not join fails.

    Raises:
        ValueError: settings that contradict each other, in one line.
    """

    def __init__(
        self,
        bucket_cap_mb: float | None = None,
        overlap: bool = True,
        gradient_as_bucket_view: bool = True,
        static_graph: bool = False,
        find_unused_parameters: bool = False,
        broadcast_buffers: bool | None = None,
        compression: Compression = "none",
        powersgd_rank: int = 4,
        powersgd_start_step: int = 100,
        sync_micro_batches: bool = False,
        start_method: Literal["popen", "fork", "spawn", "forkserver"] = "popen",
        threads_per_process: int | None = None,
        process_group_backend: str | None = None,
        timeout_minutes: float = 30.0,
    ) -> None:
        if bucket_cap_mb is not None and bucket_cap_mb <= 0:
            raise ValueError(
                f"trainer.strategy.bucket_cap_mb={bucket_cap_mb} must be positive, or null for torch's choice"
            )
        if bucket_cap_mb is not None and not overlap:
            raise ValueError(
                f"trainer.strategy.bucket_cap_mb={bucket_cap_mb} has no meaning with overlap=false: it has one bucket"
            )
        if compression not in Compression.__args__:
            raise ValueError(
                f"trainer.strategy.compression={compression!r} is unknown: use {', '.join(Compression.__args__)}"
            )
        if powersgd_rank < 1:
            raise ValueError(f"trainer.strategy.powersgd_rank={powersgd_rank} must be at least 1")
        if powersgd_start_step < 2:
            raise ValueError(
                f"trainer.strategy.powersgd_start_step={powersgd_start_step} must be at least 2: DDP arranges its "
                "buckets in the first"
            )
        if threads_per_process is not None and threads_per_process < 1:
            raise ValueError(f"trainer.strategy.threads_per_process={threads_per_process} must be at least 1, or null")
        if timeout_minutes <= 0:
            raise ValueError(f"trainer.strategy.timeout_minutes={timeout_minutes} must be positive")
        self.compression = compression
        self.powersgd_rank, self.powersgd_start_step = powersgd_rank, powersgd_start_step
        self.threads_per_process = threads_per_process
        self.sync_micro_batches = sync_micro_batches
        self.broadcast_buffers = broadcast_buffers
        super().__init__(
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
            start_method=start_method,
            bucket_cap_mb=bucket_cap_mb if overlap else ONE_BUCKET_MB,
            gradient_as_bucket_view=gradient_as_bucket_view,
            static_graph=static_graph,
            find_unused_parameters=find_unused_parameters,
        )

    def check_trainer(self, trainer: Trainer) -> None:
        """Refuses what cannot work together, before a process is started.

        Raises:
            ValueError: static_graph with accumulation: DDP fails an internal assertion in the second micro-batch.
        """
        accumulation = trainer.accumulate_grad_batches
        if self._ddp_kwargs["static_graph"] and accumulation > 1 and not self.sync_micro_batches:
            raise ValueError(
                f"trainer.strategy.static_graph=true cannot accumulate (trainer.accumulate_grad_batches="
                f"{accumulation}): set static_graph to false"
            )

    def setup_environment(self) -> None:
        """In every process; checks once more for those who do not come through the command line."""
        if self.threads_per_process is not None:
            torch.set_num_threads(self.threads_per_process)
        if self.lightning_module is not None:
            self.check_trainer(self.lightning_module.trainer)
        super().setup_environment()

    def _setup_model(self, model: Module) -> DistributedDataParallel:
        broadcast = self.broadcast_buffers
        if broadcast is None:
            broadcast = any(isinstance(module, _BatchNorm) for module in model.modules())
        self._ddp_kwargs[SYNC_BUFFERS] = broadcast
        return super()._setup_model(model)

    def communication_hook(self) -> tuple[object, Callable[[Any, dist.GradBucket], Future[Tensor]]] | None:
        """State and hook of DistributedDataParallel.register_comm_hook; None: DDP's own exact mean."""
        if self.compression == "none":
            return None
        if self.compression == "powersgd":
            state = PowerSGDState(None, self.powersgd_rank, start_powerSGD_iter=self.powersgd_start_step)
            return state, powerSGD_hook if dist.get_backend() == "nccl" else powersgd_in_order
        return None, {"fp16": fp16_compress_hook, "bf16": bf16_compress_hook}[self.compression]

    def _register_ddp_hooks(self) -> None:
        """On every device: Lightning 2.6 silently leaves hooks out on CPU."""
        hook = self.communication_hook()
        if hook is None:
            return
        half = {parameter.element_size() for parameter in self.model.parameters() if parameter.requires_grad} == {2}
        if half and self.compression in ("fp16", "bf16"):
            rank_zero_warn(
                f"trainer.strategy.compression={self.compression} saves nothing: the gradients have 16 bits already"
            )
        self.model.register_comm_hook(*hook)

    def block_backward_sync(self) -> AbstractContextManager[None]:
        """Around a micro-batch that does not end an optimizer step."""
        return nullcontext() if self.sync_micro_batches else super().block_backward_sync()
