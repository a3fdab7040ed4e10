#!/usr/bin/env bash
# One training process of many, started by torchrun: `lightning-gpt fit` on as many devices as torchrun has started
# processes. An elastic job may have other numbers after each restart, so they cannot be in a file.
#
#   torchrun --nproc_per_node 8 --no-python deploy/train/worker.sh -c configs/pretrain/gpt2_124m.yaml ...
#
# Starts from the beginning where there is no checkpoint yet, else goes on from the last one. Exit status: 0 done,
# 128 + n stopped by signal n and saved, 2 a mistake in the settings, 1 anything else.
set -euo pipefail
: "${LOCAL_WORLD_SIZE:?start this by torchrun: see deploy/train/README.md}"
: "${GROUP_WORLD_SIZE:?start this by torchrun: see deploy/train/README.md}"
exec "${PYTHON:-python3}" -m lightning_gpt fit "$@" --trainer.devices "$LOCAL_WORLD_SIZE" \
    --trainer.num_nodes "$GROUP_WORLD_SIZE" --ckpt_path "${CKPT_PATH:-auto}"
