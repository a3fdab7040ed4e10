#!/usr/bin/env bash
# Trains on several machines by torchrun: the same command on each of them, in any order.
#
#   NODES=2 HEAD=node0:29500 deploy/train/torchrun.sh -c configs/pretrain/gpt2_124m.yaml -c configs/trainer/torchrun.yaml
#
#   NODES         machines; 1:4 = as many as come, at least one: the job goes on without one that is lost, and takes one
#                 in that is added; each change starts all processes again from the last checkpoint
#   HEAD          host:port of one of them, where all meet (c10d rendezvous); localhost:0 on one machine
#   PER_NODE      processes of a machine; "gpu" = its GPUs
#   RUN_ID        the same on all machines, different for jobs that share HEAD
#   MAX_RESTARTS  of all processes, after one of them has failed
#
# The checkpoints must be reachable under the same path on every machine (--run.dir).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NODES=${NODES:-1}
HEAD=${HEAD:-localhost:0}
PER_NODE=${PER_NODE:-gpu}
if [[ $# -eq 0 ]]; then
    echo "usage: NODES=2 HEAD=host:29500 $0 -c configs/<topic>.yaml -c configs/trainer/torchrun.yaml ..." >&2
    exit 2
fi
if [[ $NODES != 1 && $HEAD == localhost:* ]]; then
    echo "NODES=$NODES: say where they meet, such as HEAD=node0:29500 (one of them, the same on all)" >&2
    exit 2
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "${PYTHON:-python3}" -m torch.distributed.run --nnodes "$NODES" --nproc_per_node "$PER_NODE" \
    --rdzv_backend c10d --rdzv_endpoint "$HEAD" --rdzv_id "${RUN_ID:-lightning-gpt}" \
    --max_restarts "${MAX_RESTARTS:-3}" --no-python "$here/worker.sh" "$@"
