"""Where cells run: here (one after the other or side by side), in this process, on a Ray cluster, under SLURM.

An engine takes cells and gives back, as they end, each with its state or the error that ended it. Cells and their
directories must be reachable under the same paths wherever they run: a cluster needs a shared file system, and this
package installed on its nodes.
"""

import contextlib
import os
import queue
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

from lightning_gpt.experiments.cell_run import LOG_FILE, CellState, conclude, prepare_run, run_cell
from lightning_gpt.experiments.plan import Cell
from lightning_gpt.experiments.settings import lookup, overlaid, read_yaml
from lightning_gpt.experiments.spec_checks import nearest

Outcome = tuple[Cell, CellState | Exception]


class Engine(Protocol):
    """Runs cells."""

    parallel: int
    """How many at most at the same time."""

    def run(self, cells: list[Cell]) -> Iterator[Outcome]:
        """Each cell as it ends. Closing the iterator stops what still runs (on a cluster: cancels it)."""
        ...


class LocalEngine:
    """Processes of this machine, `parallel` at a time, which share its cores, and its GPUs in turn.

    Args:
        parallel: how many cells at a time, at least 1.
    """

    def __init__(self, parallel: int = 1) -> None:
        self.parallel = parallel

    def run(self, cells: list[Cell]) -> Iterator[Outcome]:
        """As Engine.run."""
        slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.parallel):
            slots.put(slot)
        processes: set[subprocess.Popen] = set()

        def one(cell: Cell) -> CellState:
            slot = slots.get()
            try:
                return run_cell(cell, self.environment(slot), processes)
            finally:
                slots.put(slot)

        pool = ThreadPoolExecutor(self.parallel)
        try:
            futures = {pool.submit(one, cell): cell for cell in cells}
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, Exception):
                    raise error
                yield futures[future], error or future.result()
        except KeyboardInterrupt:  # the terminal has sent it to the runs too: they save and leave
            pool.shutdown(cancel_futures=True)
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(processes):
                process.terminate()  # saves and leaves
            pool.shutdown()
            raise
        pool.shutdown()

    def environment(self, slot: int) -> dict[str, str]:
        """Variables of the runs of one of the `parallel` slots: its threads, and its GPU where there are several."""
        if self.parallel == 1:
            return {}
        import torch

        environment = {}
        if "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, available_cores() // self.parallel))
        if torch.cuda.device_count() > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % torch.cuda.device_count())
        return environment


def available_cores() -> int:
    """Of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class InlineEngine:
    """Cells one after the other in this very process: saves each the start of a process, protects none from another.

    Runs of several processes get one of their own: this one's command would be called again for the second rank, and a
    fork of it would not have the threads of its matrix products.

    Args:
        fit: runs `lightning-gpt` with the given arguments.
    """

    parallel = 1

    def __init__(self, fit: Callable[[list[str]], Any]) -> None:
        self.fit = fit

    def run(self, cells: list[Cell]) -> Iterator[Outcome]:
        """As Engine.run."""
        for cell in cells:
            try:
                yield cell, run_cell(cell) if of_several_processes(cell) else self._one(cell)
            except (RuntimeError, ValueError) as error:
                yield cell, error

    def _one(self, cell: Cell) -> CellState:
        from torch import distributed

        state, arguments = prepare_run(cell)
        begin, status = time.monotonic(), 0
        environment = dict(os.environ)
        with (
            open(cell.directory / LOG_FILE, "w", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            try:
                self.fit(arguments)
            except SystemExit as end:
                if end.code in (130, 143):  # Ctrl-C, SIGTERM: the whole experiment shall stop
                    raise
                status = end.code if isinstance(end.code, int) else 1
            finally:  # a strategy of several devices leaves its group and its rank, also where there is one
                os.environ.clear()
                os.environ.update(environment)
                if distributed.is_available() and distributed.is_initialized():
                    distributed.destroy_process_group()
        state.seconds = round(time.monotonic() - begin, 2)
        return conclude(cell, state, status)


def of_several_processes(cell: Cell) -> bool:
    """Whether its run asks for more than one device."""
    tree = cell.settings
    for path in reversed(cell.configs):
        tree = overlaid(read_yaml(path), tree)
    return lookup(tree, "trainer.devices", "auto") not in (1, "1", "auto")


class RayEngine:
    """Tasks of a Ray cluster.

    Args:
        parallel: how many at a time at most.
        address: of the cluster; "auto" for the one this machine belongs to; None: a cluster of this machine alone.
        cpus: of each task.
        gpus: of each task; may be a fraction.

    Raises:
        ValueError: Ray is not installed.
    """

    def __init__(self, parallel: int = 1, address: str | None = None, cpus: float = 1, gpus: float = 0) -> None:
        try:
            import ray
        except ImportError:
            raise ValueError("engine=ray needs `pip install 'lightning_gpt[cluster]'`") from None
        self.ray, self.parallel, self.address = ray, parallel, address
        self.resources = {"num_cpus": cpus, "num_gpus": gpus}

    def run(self, cells: list[Cell]) -> Iterator[Outcome]:
        """As Engine.run."""
        ray = self.ray
        started = not ray.is_initialized()
        if started:
            ray.init(self.address, include_dashboard=False, log_to_driver=False, configure_logging=False)
        task = ray.remote(**self.resources, max_retries=0)(_run_in)
        waiting, running = list(cells), {}
        try:
            while waiting or running:
                while waiting and len(running) < self.parallel:
                    cell = waiting.pop(0)
                    threads = str(max(1, int(self.resources["num_cpus"])))
                    running[task.remote(os.getcwd(), cell, {"OMP_NUM_THREADS": threads})] = cell
                (done, *_), _ = ray.wait(list(running))
                cell = running.pop(done)
                try:
                    outcome = ray.get(done)
                except ray.exceptions.RayError as error:
                    outcome = RuntimeError(f"{cell.variant} seed {cell.seed}: Ray lost it: {error}")
                yield cell, outcome
        finally:
            for reference in running:
                ray.cancel(reference)
            if started:
                ray.shutdown()


class SlurmEngine:
    """Jobs of one SLURM array, through submitit. Jobs outlive a command that is killed; calling it again waits for
    those that still run.

    Args:
        parallel: how many at a time at most.
        cluster: "slurm"; "local" runs the same jobs as processes of this machine, to try without SLURM.
        folder: of submitit's scripts and logs; on the shared file system.
        parameters: submitit's, such as timeout_min, slurm_partition, gpus_per_node, cpus_per_task.

    Raises:
        ValueError: submitit is not installed, knows no such parameter, or there is no SLURM here.
    """

    def __init__(
        self, parallel: int = 1, cluster: str = "slurm", folder: str = "runs/slurm", **parameters: Any
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise ValueError("engine=slurm needs `pip install 'lightning_gpt[cluster]'`") from None
        self.parallel = parallel
        try:
            self.executor = submitit.AutoExecutor(folder=Path(folder), cluster=cluster)
            if cluster == "slurm":
                parameters["slurm_array_parallelism"] = parallel
            self.executor.update_parameters(**{"timeout_min": 24 * 60, **parameters})
        except (RuntimeError, ValueError, NameError, TypeError) as error:
            raise ValueError(f"engine=slurm: {' '.join(str(error).split())}") from None

    def run(self, cells: list[Cell]) -> Iterator[Outcome]:
        """As Engine.run."""
        from submitit import helpers

        with self.executor.batch():
            jobs = [self.executor.submit(_run_in, os.getcwd(), cell, {}) for cell in cells]
        cell_of = dict(zip((job.job_id for job in jobs), cells))
        try:
            for job in helpers.as_completed(jobs):
                cell = cell_of.pop(job.job_id)
                try:
                    outcome = job.result()
                except Exception as error:  # submitit's own, and whatever the job could not say in time
                    reason = " ".join(str(error).split())
                    outcome = RuntimeError(f"{cell.variant} seed {cell.seed}: SLURM lost it: {reason}")
                yield cell, outcome
        finally:
            for job in jobs:
                if job.job_id in cell_of:
                    job.cancel()


def _run_in(directory: str, cell: Cell, environment: dict[str, str]) -> CellState | Exception:
    """run_cell from the directory that the experiment's paths start at; its errors come back as values, since engines
    wrap what is raised in words of their own."""
    os.chdir(directory)
    try:
        return run_cell(cell, environment)
    except (RuntimeError, ValueError, OSError) as error:
        return error


ENGINES: dict[str, Callable[..., Engine]] = {"local": LocalEngine, "ray": RayEngine, "slurm": SlurmEngine}
"""Name -> class."""


def choose_engine(name: str, parallel: int, options: dict[str, Any]) -> Engine:
    """The engine of that name.

    Args:
        name: of ENGINES.
        parallel: cells at a time.
        options: further arguments of the engine.

    Raises:
        ValueError: no such engine, no such option, parallel below 1.
    """
    if name not in ENGINES:
        raise ValueError(f"engine={name!r} is unknown{nearest(name, ENGINES)}: use {', '.join(ENGINES)}")
    if parallel < 1:
        raise ValueError(f"parallel={parallel} must be at least 1")
    try:
        return ENGINES[name](parallel=parallel, **options)
    except TypeError as error:
        raise ValueError(f"engine_options={options!r}: {name} {str(error).split('__init__() ')[-1]}") from None
