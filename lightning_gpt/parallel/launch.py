"""How this process came to be one of a job's ranks, from its first moment to its last."""

import atexit
import faulthandler
import os
import subprocess
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

from lightning.pytorch import Trainer

from lightning_gpt.parallel.orphan import end_with_parent
from lightning_gpt.parallel.rank_failure import Failure, RankFailure, described
from lightning_gpt.parallel.rendezvous import Meeting, bequeath, inherited, meet
from lightning_gpt.parallel.watchdog import Watchdog

EXIT_SECONDS = 30
"""Python's and NCCL's own clean-up after a failure, which may wait for ranks that are gone."""
CHILDREN_SECONDS = 60.0
"""For the ranks that Lightning has started from this one, after a run that ended well."""


class Launch:
    """One run of this process.

    Args:
        meeting: with the other ranks, where something else has started them; None where Lightning will do so.
    """

    def __init__(self, meeting: Meeting | None = None) -> None:
        self.meeting = meeting
        self.rank = meeting.rank if meeting else int(os.environ.get("LOCAL_RANK", "0"))
        self.dog: Watchdog | None = None
        self.trainer: Trainer | None = None
        self._leaves_early = False

    @classmethod
    def meet(cls) -> "Launch":
        """Joins the other ranks and begins to watch, before anything can go wrong on one of them."""
        end_with_parent()
        launch = cls(meet())
        if launch.meeting is not None:
            launch.dog = Watchdog(launch.meeting.store, launch.meeting.rank, launch.meeting.world_size)
            launch.dog.start()
        return launch

    def decide(self, decision: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What rank 0 decides, on every rank: over the meeting's store, or handed down to the ranks it starts."""
        if self.meeting is not None:
            return self.meeting.decide(decision)
        decided = inherited()
        if decided is None:
            decided = decision()
            bequeath(decided)
        return decided

    def raise_cause(self, error: BaseException) -> None:
        """Ends the job because of an error on this rank, or this rank because of the job's.

        Raises:
            RankFailure: the error is not this process's to tell, or has a cause on another rank.
            SystemExit: 1, another process tells it.
        """
        cause = getattr(error, "cause_of_end", None)
        if cause is None and isinstance(error, RankFailure):
            cause = error
        if cause is None and self.dog is not None and not self.dog.ended and _is_failure(error):
            failure = self.dog.fail(str(error) or type(error).__name__)
            cause = RankFailure(failure, self.rank) if failure.rank != self.rank else None
        self.leave_soon()
        if cause is not None:
            if cause.tell:
                raise cause from error
            raise SystemExit(1) from error
        if self._world_size > 1 and self.trainer is not None and isinstance(error, ValueError | OSError):
            rank = self.trainer.global_rank
            raise RankFailure(Failure(rank, described(error, rank), told_by=rank), rank) from error

    def leave_soon(self) -> None:
        """After a stop that all ranks make together: the end of Python and NCCL may take EXIT_SECONDS, no more."""
        self._leaves_early = self._leaves_early or self._world_size > 1

    @property
    def _world_size(self) -> int:
        if self.meeting is not None:
            return self.meeting.world_size
        return self.trainer.world_size if self.trainer is not None else 1

    def end(self) -> None:
        """Leaves no other process behind, and this one not for long."""
        if self.dog is not None:
            self.dog.end()
        launcher = getattr(getattr(self.trainer, "strategy", None), "launcher", None)
        seconds = 10.0 if self._leaves_early else CHILDREN_SECONDS
        for child in getattr(launcher, "procs", []):
            if not _ended(child, seconds):
                child.kill()
                seconds = 0.1
        if self._leaves_early:
            # In C, because Python can start no thread while it ends.
            silence = open(os.devnull, "w")  # noqa: SIM115
            atexit.register(faulthandler.dump_traceback_later, EXIT_SECONDS, exit=True, file=silence)


def _ended(child: subprocess.Popen | BaseProcess, seconds: float) -> bool:
    """Whether a rank that Lightning has started, as a command or by a fork, ends within so long."""
    if isinstance(child, BaseProcess):
        child.join(seconds)
        return not child.is_alive()
    try:
        child.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _is_failure(error: BaseException) -> bool:
    """Whether the other ranks cannot go on: not --help, nor a stop that all ranks make together."""
    if isinstance(error, SystemExit):
        return error.code not in (0, None)
    return True
