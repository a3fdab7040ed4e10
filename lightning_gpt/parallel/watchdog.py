"""A thread beside each rank's training: shows that it lives, hears of failures, and names the rank that stalls."""

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from torch import distributed
from torch.distributed import HashStore, Store

from lightning_gpt.parallel.rank_failure import HOW_TO_GO_ON, Failure, acknowledge, await_acknowledgement, post, posted

PHASES = ("before the first step", "forward", "backward", "optimizer", "between steps", "validation")
"""Where a rank can be within a step, in the order in which it comes there; validation follows the step."""
PATIENCE_SECONDS = 5.0
"""For a thread that should end by itself, and for other ranks' answers."""


@dataclass(frozen=True)
class State:
    """What a rank tells of itself."""

    beat: int
    """Grows while its process lives."""
    step: int
    """Optimizer steps done."""
    phase: str
    """Of PHASES."""
    batch: int
    """Within a validation."""
    where: str
    """The innermost Python frame of the thread that trains."""
    waits: bool
    """Whether that frame is one in which ranks wait for others."""
    host: str

    @property
    def progress(self) -> tuple[int, int, int]:
        """Comparable between ranks."""
        return self.step, PHASES.index(self.phase), self.batch


class Watchdog(threading.Thread):
    """Of one rank.

    Args:
        store: shared by the ranks; None = there is only this one.
        rank: this one.
        world_size: of how many.
        stalled_seconds: without any step, or validation batch, before the job is declared stalled; None = never.
        dead_seconds: without a sign of life before a rank is declared gone.
        poll_seconds: between two signs of life.
    """

    def __init__(
        self,
        store: Store | None,
        rank: int = 0,
        world_size: int = 1,
        stalled_seconds: float | None = None,
        dead_seconds: float = 60.0,
        poll_seconds: float = 0.5,
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.rank, self.world_size = rank, world_size
        self.stalled_seconds, self.dead_seconds, self.poll_seconds = stalled_seconds, dead_seconds, poll_seconds
        self.directory: Path | None = None  # for stacks
        # A connection of its own: a call that waits on the training's would hold this thread up.
        self._store = HashStore() if store is None else store.clone()
        self._main = threading.get_ident()  # made by the thread that trains
        self._noted = (0, PHASES[0], 0, time.monotonic())
        self._beat = 0
        self._neighbour = (-1, time.monotonic())
        self._ended = threading.Event()
        self._ending = False

    def note(self, step: int, phase: str, batch: int = 0) -> None:
        """The training's word that it goes on; costs a tuple."""
        self._noted = (step, phase, batch, time.monotonic())

    def run(self) -> None:
        """Looks around twice a second, until `end`."""
        lost_since: float | None = None
        while not self._ended.wait(self.poll_seconds):
            try:
                self._tell()
                failure = posted(self._store) or self._silent_neighbour() or self._stall()
                lost_since = None
            except (RuntimeError, OSError):  # the store's process has ended: rank 0, or torchrun's agent
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since < PATIENCE_SECONDS:
                    continue
                first = min(1, self.world_size - 1)
                failure = Failure(0, f"rank 0 is gone (killed, or its machine lost); {HOW_TO_GO_ON}", told_by=first)
            if failure is not None and not self._ending:
                self._leave(failure)

    @property
    def ended(self) -> bool:
        """Whether nothing is watched any more."""
        return self._ended.is_set()

    def end(self) -> None:
        """The training is over here: nothing more is watched, nobody shall miss this rank."""
        if self._ended.is_set():
            return
        self._ended.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(PATIENCE_SECONDS)
        with contextlib.suppress(RuntimeError, OSError):
            self._store.set(f"left/{self.rank}", "1")

    def fail(self, message: str) -> Failure:
        """Tells all ranks that this one fails, unless the job has failed already; what was first.

        Waits until they know when it is this one: its store may end with it.
        """
        self._ending = True
        try:
            failure = post(self._store, Failure(self.rank, message, told_by=self.rank))
            if failure.rank == self.rank:
                await_acknowledgement(self._store, self.world_size - 1, seconds=PATIENCE_SECONDS)
            return failure
        except (RuntimeError, OSError):
            return Failure(self.rank, message, told_by=self.rank)

    def cause(self, seconds: float = PATIENCE_SECONDS) -> Failure:
        """Why a collective has just failed here: what another rank has told, or which rank is silent."""
        self._ending = True
        deadline = time.monotonic() + seconds
        try:
            first = self._beats()
            while time.monotonic() < deadline:
                failure = posted(self._store)
                if failure is not None:
                    acknowledge(self._store)
                    return self._linger(failure)
                if deadline - time.monotonic() < seconds - 4 * self.poll_seconds:
                    silent = [rank for rank, beat in self._beats().items() if beat == first[rank] and rank != self.rank]
                    if silent:
                        return self._linger(post(self._store, self._gone(silent[0], f"after step {self._noted[0]}")))
                time.sleep(0.1)
            failure = Failure(self.rank, f"lost contact with another rank; {HOW_TO_GO_ON}", told_by=self.rank)
            return self._linger(post(self._store, failure))
        except (RuntimeError, OSError):
            first_left = min(1, self.world_size - 1)
            return Failure(0, f"rank 0 is gone (killed, or its machine lost); {HOW_TO_GO_ON}", told_by=first_left)

    def _linger(self, failure: Failure) -> Failure:
        """Rank 0's process often holds the store: it leaves when the others have had the time to look."""
        if self.rank == 0 and self.world_size > 2:
            time.sleep(4 * self.poll_seconds)
        return failure

    # --- what it looks for --------------------------------------------------------------------------------------

    def _tell(self) -> State:
        self._beat += 1
        step, phase, batch, _ = self._noted
        where, waits = main_frame(self._main)
        state = State(self._beat, step, phase, batch, where, waits, socket.gethostname())
        self._store.set(f"state/{self.rank}", json.dumps(vars(state)))
        return state

    def _state(self, rank: int) -> State | None:
        key = f"state/{rank}"
        return State(**json.loads(self._store.get(key))) if self._store.check([key]) else None

    def _beats(self) -> dict[int, int]:
        states = {rank: self._state(rank) for rank in range(self.world_size)}
        return {rank: state.beat if state else 0 for rank, state in states.items()}

    def _gone(self, rank: int, when: str) -> Failure:
        state = self._state(rank)
        host = f" on {state.host}" if state else ""
        message = f"rank {rank}{host} is gone {when} (killed, or its machine lost); {HOW_TO_GO_ON}"
        return Failure(rank, message, told_by=self.rank)

    def _silent_neighbour(self) -> Failure | None:
        """Each rank watches the next: the load does not grow with the number of ranks."""
        if self.world_size == 1:
            return None
        other = (self.rank + 1) % self.world_size
        state = self._state(other)
        beat, since = self._neighbour
        if state is None or state.beat != beat or self._store.check([f"left/{other}"]):
            self._neighbour = (state.beat if state else -1, time.monotonic())
        elif time.monotonic() - since > self.dead_seconds:
            return post(self._store, self._gone(other, f"after step {state.step}"))
        return None

    def _stall(self) -> Failure | None:
        """The job's stall: this rank writes its stacks; the first that noticed waits for all and names who lags."""
        idle = time.monotonic() - self._noted[-1]
        mine = self.stalled_seconds is not None and idle > self.stalled_seconds
        if not mine and not self._store.check(["stalled"]):
            return None
        reporter = int(self._store.compare_set("stalled", "", str(self.rank)))
        self._write_stacks()
        self._tell()
        self._store.set(f"written/{self.rank}", "1")
        if reporter != self.rank:
            self._noted = (*self._noted[:3], time.monotonic())  # once is enough
            return posted(self._store) if not self._ended.wait(self.poll_seconds) else None
        before, deadline = self._beats(), time.monotonic() + PATIENCE_SECONDS
        time.sleep(4 * self.poll_seconds)
        while time.monotonic() < deadline and not all(
            self._store.check([f"written/{rank}"]) for rank in range(self.world_size)
        ):
            time.sleep(0.1)
        states = {rank: self._state(rank) for rank in range(self.world_size)}
        silent = [
            rank
            for rank, state in states.items()
            if state is None or (rank != self.rank and state.beat == before[rank])
            if not self._store.check([f"written/{rank}"])
        ]
        message = f"no progress for {idle:.0f} s: {stall_report(states, silent)}"
        if self.directory:
            message += f"; stacks in {self.directory}"
        lagging = silent or laggards(states)
        return post(self._store, Failure(lagging[0], f"{message}; {HOW_TO_GO_ON}", told_by=self.rank))

    def _write_stacks(self) -> None:
        """Python stacks of all threads, and what NCCL's flight recorder holds."""
        if self.directory is None:
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with open(self.directory / f"rank_{self.rank}.txt", "w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            if distributed.is_initialized() and "nccl" in distributed.get_backend():
                from torch._C._distributed_c10d import _dump_nccl_trace

                (self.directory / f"nccl_rank_{self.rank}").write_bytes(_dump_nccl_trace())
        except OSError as error:
            print(f"rank {self.rank}: stacks could not be written: {error}", file=sys.stderr)

    def _leave(self, failure: Failure) -> None:
        """Gives the training thread time to hear of it by itself; then ends the process, in whatever it is stuck."""
        seconds = PATIENCE_SECONDS
        with contextlib.suppress(RuntimeError, OSError):
            acknowledge(self._store)
            if self._store.check(["stalled"]):  # it has had its time
                seconds = 4 * self.poll_seconds
        self._ended.wait(seconds)
        if self._ended.is_set() or self._ending:
            return
        if failure.told_by == self.rank:
            print(f"lightning-gpt: error: {failure.message}", file=sys.stderr, flush=True)
        os._exit(1)


def main_frame(thread: int) -> tuple[str, bool]:
    """File, line and function where a thread is, and whether it waits there for other ranks."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "nowhere", False
    path = Path(frame.f_code.co_filename)
    waits = "torch/distributed" in str(path) or path.parts[-2:] == ("autograd", "graph.py") or path.name == "vote.py"
    return f"{'/'.join(path.parts[-2:])}:{frame.f_lineno} in {frame.f_code.co_name}", waits


def laggards(states: dict[int, State]) -> list[int]:
    """The ranks that are behind all others; where all are equally far, those that do not wait for another."""
    least = min(state.progress for state in states.values())
    behind = [rank for rank, state in states.items() if state.progress == least]
    if len(behind) == len(states):
        busy = [rank for rank, state in states.items() if not state.waits]
        return busy or behind
    return behind


def stall_report(states: dict[int, State], silent: list[int]) -> str:
    """Who holds the others up, and where; one line.

    Args:
        states: of all ranks that were ever heard of.
        silent: ranks whose process no longer shows life.
    """
    known = {rank: state for rank, state in states.items() if state is not None}
    if silent:
        state = known.get(silent[0])
        after = f" after step {state.step}, {state.phase}" if state else ""
        return f"rank {silent[0]} shows no sign of life{after}"
    lagging = laggards(known)
    state = known[lagging[0]]
    place = f"after step {state.step}, {state.phase}, at {state.where}"
    if len(lagging) == len(states):
        return f"all ranks are {place}" if len(states) > 1 else f"the run is {place}"
    names = ", ".join(map(str, lagging))
    return f"rank{'s' if len(lagging) > 1 else ''} {names} lag{'' if len(lagging) > 1 else 's'} behind: {place}"
