"""What failed first, known to every rank: the difference between one clear line and sixty-four timeouts."""

import json
import time
from dataclasses import asdict, dataclass

from torch.distributed import Store

HOW_TO_GO_ON = "continue with --ckpt_path last"
KEY = "failure"


@dataclass(frozen=True)
class Failure:
    """The first thing that went wrong in a job."""

    rank: int
    """Where."""
    message: str
    """One line."""
    told_by: int
    """The rank whose process says so; all others end without a word."""


class RankFailure(RuntimeError):
    """The job ends because of another rank; the message is for people.

    Args:
        failure: the cause.
        rank: this process's.
    """

    def __init__(self, failure: Failure, rank: int) -> None:
        self.failure = failure
        self.tell = failure.told_by == rank
        super().__init__(failure.message)


def described(error: BaseException, rank: int) -> str:
    """An error of one rank in one line, with the rank unless the message begins with it."""
    text = " ".join(str(error).split())
    if not isinstance(error, ValueError | OSError | RuntimeError) or not text:
        text = f"{type(error).__name__}: {text}"
    return text if text.startswith("rank") or f" on rank {rank}" in text else f"rank {rank}: {text}"


def post(store: Store, failure: Failure) -> Failure:
    """Makes `failure` the job's cause unless there is one already; the job's cause."""
    return Failure(**json.loads(store.compare_set(KEY, "", json.dumps(asdict(failure)))))


def posted(store: Store) -> Failure | None:
    """The job's cause, if something has failed."""
    return Failure(**json.loads(store.get(KEY))) if store.check([KEY]) else None


def acknowledge(store: Store) -> None:
    """Says that this rank knows the cause: the store's owner may leave."""
    store.add("acknowledged", 1)


def await_acknowledgement(store: Store, others: int, seconds: float) -> None:
    """Waits until the `others` know the cause, at most so long."""
    deadline = time.monotonic() + seconds
    while store.add("acknowledged", 0) < others and time.monotonic() < deadline:
        time.sleep(0.05)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error is what a rank sees of another's end, and so never the cause.

    gloo, NCCL and the store raise plain RuntimeErrors or their own DistErrors, told apart by their words.
    """
    if not isinstance(error, RuntimeError):
        return False
    text = f"{type(error).__name__}: {error}".lower()
    return any(sign in text for sign in _SIGNS)


_SIGNS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "connectfullmesh failed",
    "timed out waiting",
    "wait timeout",
    "gloo",
    "nccl",
    "distbackenderror",
    "distnetworkerror",
    "diststoreerror",
    "store is gone",
    "socket",
)
