"""A rank whose launcher is gone ends too: nothing stays behind on the devices."""

import os
import sys
import threading
import time

GRACE_SECONDS = 5.0
"""After the launcher's end: a rank that is ending by itself gets so long."""


def end_with_parent() -> None:
    """Ends this process soon after the one that started it, where that is Lightning or torchrun.

    Without it, kill -9 of rank 0 (which starts the others) or of torchrun leaves ranks that wait in a collective, or
    for each other's start, for as long as the timeouts allow.
    """
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    by_lightning = os.environ.get("LOCAL_RANK", "0") != "0" and not {"RANK", "SLURM_PROCID"} & os.environ.keys()
    if by_torchrun or by_lightning:
        watch_process(os.getppid())


def watch_process(parent: int, poll_seconds: float = 1.0) -> None:
    """Ends this process soon after it has lost its parent, process `parent`."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll_seconds)
        time.sleep(GRACE_SECONDS)
        print(
            f"rank {os.environ.get('RANK', os.environ.get('LOCAL_RANK', '?'))}: the process that started it is gone "
            "(killed?): ending; continue with --ckpt_path last",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
