"""Where the ranks that something else has started (torchrun, SLURM, Kubernetes) meet, before any process group."""

import itertools
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from torch.distributed import PrefixStore, Store, TCPStore

from lightning_gpt.parallel.rank_failure import Failure, RankFailure, post

INHERITED = "LIGHTNING_GPT_DECIDED"
"""Environment variable in which a process hands its decisions to the ranks that Lightning starts from it."""
PATIENCE = timedelta(minutes=10)
"""How long ranks wait for one another's start: pods and nodes may come minutes apart."""

_MEETINGS = itertools.count()
"""Of this process: a second run must not find the first one's decisions."""


@dataclass(frozen=True)
class Meeting:
    """A store that all ranks of a job share, and who this process is in it."""

    store: Store
    rank: int
    world_size: int

    def decide(self, decision: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What rank 0 decides: looked up by each rank, a file system may answer each of them differently.

        Args:
            decision: called on rank 0 only; its result must be JSON.

        Raises:
            RankFailure: on the other ranks, when it failed on rank 0; there the error itself.
        """
        if self.rank:
            answer = json.loads(self.store.get("decision"))
            if "error" in answer:
                raise RankFailure(Failure(0, answer["error"], told_by=0), self.rank)
            return answer["value"]
        try:
            value = decision()
        except Exception as error:
            self.store.set("decision", json.dumps({"error": str(error)}))
            post(self.store, Failure(0, str(error), told_by=0))
            raise
        self.store.set("decision", json.dumps({"value": value}))
        return value


def launched_from_outside() -> tuple[int, int, str, int] | None:
    """Rank, world size, main address and port from torch's variables (torchrun, Kubernetes' PyTorchJob) or SLURM's.

    None: a single process, or the first one of those that Lightning will start or has started itself.
    """
    variables = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
    if all(variables):
        rank, world_size, host, port = variables
        place = int(rank), int(world_size), host, int(port)
    elif "SLURM_PROCID" in os.environ and SLURMEnvironment.detect():
        slurm = SLURMEnvironment()
        place = slurm.global_rank(), slurm.world_size(), slurm.main_address, slurm.main_port
    else:
        return None
    return place if place[1] > 1 else None


def meet() -> Meeting | None:
    """Joins the job's store; rank 0 opens it where torchrun's agent has not. None where nothing was launched from
    outside.

    The same port serves the process group later: within a process, torch lets both share one server.
    """
    place = launched_from_outside()
    if place is None:
        return None
    rank, world_size, host, port = place
    from_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        host,
        port,
        world_size,
        is_master=rank == 0 and not from_agent,
        timeout=PATIENCE,
        wait_for_workers=False,
        multi_tenant=not from_agent,
    )
    # The agent's store outlives its workers: what earlier attempts have left there must not be found.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    ours = PrefixStore(f"lightning_gpt/{attempt}/{next(_MEETINGS)}", store)
    if from_agent and attempt != "0":
        _leave_agents_store(ours, rank)
    return Meeting(ours, rank, world_size)


def _leave_agents_store(store: Store, rank: int) -> None:
    """Gives the process group of a restarted job a store of its own, in rank 0's process.

    torch 2.15 leads all attempts to the same store under the same names: gloo then finds the addresses of processes
    that are dead, and no restart ever comes to its first step.
    """
    if rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            store.set("port", str(free.getsockname()[1]))
    os.environ["MASTER_PORT"] = store.get("port").decode()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def inherited() -> dict[str, Any] | None:
    """What the process that started this rank has decided; None in that process and wherever there is none."""
    started = os.environ.get("LOCAL_RANK", "0") != "0" and "RANK" not in os.environ
    return json.loads(os.environ[INHERITED]) if started and INHERITED in os.environ else None


def bequeath(decision: dict[str, Any]) -> None:
    """Leaves a decision for the ranks that Lightning will start from this process."""
    os.environ[INHERITED] = json.dumps(decision)
