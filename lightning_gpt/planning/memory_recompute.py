"""Which blocks are computed again, wholly or in part, and what each then keeps (parallel/recompute.py).

What a selectively checkpointed block keeps agrees with autograd's saved tensors
(tests/planning/test_memory_recompute.py).
"""

from functools import lru_cache

from lightning_gpt.nn.config import GATED
from lightning_gpt.parallel.recompute import Recompute
from lightning_gpt.parallel.recompute_budget import STEPS, BlockCost, choose_modes
from lightning_gpt.planning.memory_activations import (
    block_use,
    copy_bytes,
    expert_rows,
    feed_forward_use,
    mixture_use,
)
from lightning_gpt.planning.memory_attention import attention_use, path_name
from lightning_gpt.planning.memory_job import TrainingJob, inventory


@lru_cache(maxsize=512)
def block_modes(job: TrainingJob) -> tuple[str, ...]:
    """Of every block: none, or one of parallel/recompute.py's; on CPU nothing is moved to the host."""
    chosen, layers = Recompute.of(job.activation_checkpointing), range(job.config.n_layer)
    if chosen.mode == "budget":
        return tuple(choose_modes([block_cost(job, layer) for layer in layers], chosen.budget))
    modes = tuple(chosen.modes(len(layers)))
    if job.device == "cpu":
        modes = tuple({"offload": "none", "full_offload": "full"}.get(mode, mode) for mode in modes)
    return modes


def block_cost(job: TrainingJob, layer: int) -> BlockCost:
    """As training measures it to keep within a budget."""
    kept = {mode: kept_bytes(job, layer, mode) + late_copies(job, layer, mode) for mode in STEPS}
    matrices = sum(one.numbers for one in inventory(job.config)[0] if one.layer == layer and one.kind == "hidden")
    moe = job.config.moe
    if moe is not None and job.config.is_mixture(layer):  # a token meets top_k of the experts
        experts = (one for one in inventory(job.config)[0] if one.layer == layer and len(one.shape) == 3)
        matrices -= sum(one.numbers for one in experts) * (1 - moe.top_k / moe.experts)
    products = 2.0 * job.tokens * matrices
    scores = 4.0 * job.tokens * job.block_size * job.config.n_head * job.config.head_size
    written_out = path_name(job, job.config.windows[layer], job.batch_size, job.block_size) not in ("flash", "flex")
    return BlockCost(kept, {"none": 0.0, "selective": scores * written_out, "full": products + scores})


def kept_bytes(job: TrainingJob, layer: int, mode: str) -> float:
    """What a block keeps from the forward to the backward pass, without copies of its weights.

    Args:
        job: the run.
        layer: of the block.
        mode: one of block_modes.
    """
    config, N, a, s = job.config, job.tokens, job.bytes.compute, job.bytes.weights
    stream = N * config.n_embd
    if mode == "full":
        return stream * s
    if mode in ("offload", "full_offload"):
        return 0.0
    if mode == "selective":
        return stream * s + _product_results(job, layer)
    saved = block_use(job, layer, job.batch_size, job.block_size).saved
    if mode == "attention":  # and in place of what its first matrix takes, the norm's output
        return saved - attention_use(job, layer, job.batch_size, job.block_size).saved + stream * (s - a)
    if mode == "feed_forward":
        if config.is_mixture(layer):
            return saved - mixture_use(job, N).saved + stream * s
        return saved - feed_forward_use(job, N, config.hidden_size, config.feed_forward).saved + stream * (s - a)
    return saved


def _product_results(job: TrainingJob, layer: int) -> float:
    """Of products with weights, and of attention's fused kernel."""
    config, N, a = job.config, job.tokens, job.bytes.compute
    query, key = N * config.n_head * config.head_size, N * config.kv_heads * config.head_size
    kept = (query + 2 * key + N * config.n_embd) * a
    if path_name(job, config.windows[layer], job.batch_size, job.block_size) == "flash" and not config.dropout:
        kept += query * a + 4 * N * config.n_head
    if not config.is_mixture(layer):
        return kept + N * (config.hidden_size * _inner(config.feed_forward) + config.n_embd) * a
    moe, rows = config.moe, expert_rows(job, N)
    kept += rows * (config.expert_size * _inner(config.expert_kind) + config.n_embd) * a + 4 * N * moe.experts
    if moe.shared:
        kept += N * (moe.shared * config.expert_size * _inner(config.expert_kind) + config.n_embd) * a
    return kept


def _inner(kind: str) -> int:
    return 2 if kind in GATED else 1


def late_copies(job: TrainingJob, layer: int, mode: str) -> int:
    """Autocast's copies of a block's weights that wait for its backward pass: not those of what is computed again."""
    if mode in ("full", "selective", "full_offload", "offload"):
        return 0
    return copy_bytes(job, layer, but=mode)
