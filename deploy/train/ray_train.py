"""`lightning-gpt fit` on a Ray cluster, a worker for each GPU:

ray job submit --working-dir . -- python deploy/train/ray_train.py --workers 16 --gpus -- \
    -c configs/pretrain/gpt2_124m.yaml -c configs/trainer/torchrun.yaml --run.dir /shared/runs

Ray finds places for the workers, starts them again when one is lost, and tells each who it is; from there on they are
what torchrun's workers are. What is behind `--` goes to fit; --run.dir must be reachable from all nodes under one path.
"""

import argparse
import os
from typing import Any


def train(settings: dict[str, Any]) -> None:
    """The life of one worker. Ray has set RANK, WORLD_SIZE, MASTER_ADDR, ... and opened the process group.

    Raises:
        RuntimeError: training ended with another status than 0.
    """
    from lightning_gpt.cli import main

    os.environ.setdefault("TORCHELASTIC_RUN_ID", "ray")  # by which Lightning knows that processes are started already
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if world % local:
        raise RuntimeError(f"{world} workers do not fill nodes of {local}: ask for the same number on each node")
    os.environ["GROUP_RANK"] = os.environ.get("NODE_RANK", "0")
    devices = ["--trainer.devices", str(local), "--trainer.num_nodes", str(world // local)]
    try:
        main(["fit", *settings["fit"], *devices, "--ckpt_path", settings["ckpt_path"]])
    except SystemExit as end:  # Ray's workers are threads of its processes, which must not end with them
        if end.code not in (0, None):
            raise RuntimeError(f"lightning-gpt fit ended with status {end.code}") from None


def main() -> None:
    """Asks Ray for the workers and waits for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="processes, one for each device")
    parser.add_argument("--gpus", action="store_true", help="a GPU for each worker, and NCCL; else CPUs and gloo")
    parser.add_argument("--cpus", type=float, default=1, help="of each worker")
    parser.add_argument("--restarts", type=int, default=3, help="of all workers, after one is lost")
    parser.add_argument("--storage", default=os.path.abspath("runs/ray"), help="where Ray keeps its own records")
    parser.add_argument("--ckpt_path", default="auto", help="as fit's: auto = the last checkpoint, if there is one")
    parser.add_argument("fit", nargs="+", help="after --: what lightning-gpt fit is told")
    options = parser.parse_args()
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: must be at least 1")

    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(ignore_reinit_error=True)
    resources = {"CPU": options.cpus} | ({"GPU": 1} if options.gpus else {})
    scaling = ScalingConfig(num_workers=options.workers, use_gpu=options.gpus, resources_per_worker=resources)
    run = RunConfig(storage_path=options.storage, failure_config=FailureConfig(max_failures=options.restarts))
    settings = {"fit": options.fit, "ckpt_path": options.ckpt_path}
    backend = TorchConfig(backend="nccl" if options.gpus else "gloo")
    TorchTrainer(train, train_loop_config=settings, torch_config=backend, scaling_config=scaling, run_config=run).fit()


if __name__ == "__main__":
    main()
