"""What a forward pass keeps for the backward pass, counted from the configuration: blocks, experts, copies of weights.

Each number was read off the code and agrees with autograd's saved tensors (tests/planning/test_memory_activations.py).
For Megatron's count of a plain block see Korthikanti et al., 2022, section 4.1.
"""

import math

from lightning_gpt.nn.config import GATED
from lightning_gpt.nn.moe import CPU_ROW_MULTIPLE
from lightning_gpt.planning.memory_attention import Use, attention_use, norm_use, path_name, scores
from lightning_gpt.planning.memory_job import TrainingJob, inventory


def feed_forward_use(job: TrainingJob, rows: float, hidden: int, kind: str) -> Use:
    """Between the input of a feed-forward, which is not counted, and its output.

    Args:
        rows: tokens, or pairs of a token and an expert.
        hidden: F.
        kind: as config.feed_forward.
    """
    a, C, F = job.bytes.compute, job.config.n_embd, hidden
    kept = {"relu": 1, "relu2": 2}.get(kind, 4 if kind in GATED else 2)
    passing = (F if kind in ("relu", "relu2") else 0) + C
    working = (2 if kind in GATED else 1) * F  # what a gradient takes the place of is freed
    return Use(rows * kept * F * a, rows * passing * a, rows * working * a)


def expert_rows(job: TrainingJob, tokens: int) -> float:
    """Rows that the experts of a layer work on; how many are filled up depends on the loads, so it is the mean."""
    moe = job.config.moe
    if moe.routing == "expert_choice":
        return moe.experts * min(math.ceil((moe.capacity_factor or 1.0) * tokens * moe.top_k / moe.experts), tokens)
    multiple = CPU_ROW_MULTIPLE.get(job.dtype, 1) if job.device == "cpu" else 1
    pairs = tokens * moe.top_k
    return pairs + (moe.experts * (multiple - 1) / 2 if pairs > multiple else 0)


def mixture_use(job: TrainingJob, tokens: int) -> Use:
    """A mixture of experts with its router; the normalised stream, which the router keeps in float32, included."""
    config, moe = job.config, job.config.moe
    a, s, C, E, K = job.bytes.compute, job.bytes.weights, config.n_embd, config.moe.experts, config.moe.top_k
    rows = expert_rows(job, tokens)
    saved = tokens * (4 * C + 8 * E + (12 + 16 * K if moe.routing != "expert_choice" else 4))
    if moe.routing == "expert_choice":
        saved += rows * (8 + 4 + C * a)
    saved += 2 * rows * C * a  # what goes into the experts, and what comes out
    saved += 4 * C * E if s == 2 else 0  # the router's weights in float32
    passing = tokens * C * (a + (s if s == 2 else 0)) + rows * 6 * 8
    use = Use(saved, passing) + feed_forward_use(job, rows, config.expert_size, config.expert_kind)
    if moe.shared:
        if job.bytes.autocast or s == 2:
            use += Use(tokens * C * a)
        use += feed_forward_use(job, tokens, moe.shared * config.expert_size, config.expert_kind)
    return use


def block_use(job: TrainingJob, layer: int, rows: int, tokens: int) -> Use:
    """One layer, without copies of its weights."""
    config, N = job.config, rows * tokens
    a, s, C = job.bytes.compute, job.bytes.weights, job.config.n_embd
    mixture = config.is_mixture(layer)
    keeps, more = norm_use(job, N, C, s, config.norm_affine, config.norm)
    streams = 1 if config.parallel_residual else 2
    saved = keeps * streams * N * C * s + 2 * more
    saved += (1 if mixture else 2) * N * C * a  # what the first matrices of both branches take
    passing = 2 * N * C * s if job.bytes.autocast else 0.0  # norms' outputs, of which copies are taken
    saved += N * C * s if config.input_skip else 0
    if config.norm_place == "sandwich":
        keeps, more = norm_use(job, N, C, a, config.norm_affine, config.norm)
        saved += 2 * (more + keeps * N * C * a)
        passing += 2 * N * C * a
    if config.dropout:
        saved += 2 * N * C * (a if job.device == "cpu" else 1)
        passing += 2 * N * C * a
    if config.residual_multiplier != 1:
        passing += 2 * N * C * a
    stream = Use(saved, passing, N * C * s)
    branch = mixture_use(job, N) if mixture else feed_forward_use(job, N, config.hidden_size, config.feed_forward)
    attention = attention_use(job, layer, rows, tokens)
    # By the time that attention's gradients are computed, what the feed-forward kept is freed.
    attention = attention._replace(working=attention.working - branch.saved - 2 * N * C * a)
    use = stream + attention + branch
    return use._replace(working=stream.working + max(branch.working, attention.working))


def ends_use(job: TrainingJob, rows: int, tokens: int) -> Use:
    """Outside the blocks, without the loss: embedding, final norm, and what all layers share."""
    config, N = job.config, rows * tokens
    s, C = job.bytes.weights, config.n_embd
    saved = 8 * N + (N * C * s if config.dropout and job.device == "cpu" else N * C * bool(config.dropout))
    if config.norm_place != "post":
        keeps, more = norm_use(job, N, C, s, config.norm_affine, config.norm)
        saved += keeps * N * C * s + more
    if config.position == "rotary" and job.bytes.compute == 2:
        saved += 2 * tokens * config.rotary_size * 2  # the tables in 16 bits
    if config.input_skip:
        saved += N * C * s
    return Use(saved, 2 * N * C * s)


def passing_bytes(job: TrainingJob, layer: int, rows: int, tokens: int) -> float:
    """What one layer holds at most when nothing is kept for a backward pass, with the stream before and after it."""
    config, N = job.config, rows * tokens
    a, s, C = job.bytes.compute, job.bytes.weights, job.config.n_embd
    query, key = N * config.n_head * config.head_size, N * config.kv_heads * config.head_size
    window, square = config.windows[layer], rows * config.n_head * tokens * tokens
    path = path_name(job, window, rows, tokens, training=False)
    if path == "blocked":
        weights = scores(job, None if window is not None and window >= tokens else window, rows, tokens) * a
    else:
        weights = {"plain": 2 * square * a, "math": 8 * square}.get(path, 0)
    attention = weights + (query + 2 * key + query) * a
    mixture = config.is_mixture(layer)
    kind, hidden = (config.expert_kind, config.expert_size) if mixture else (config.feed_forward, config.hidden_size)
    pairs = expert_rows(job, N) if mixture else N
    feed_forward = pairs * hidden * (4 if kind in GATED else 2) * a + (2 * pairs * C * a if mixture else 0)
    # The embedding, the stream, the normalised stream and its copy; values, and with them queries and keys, of this
    # layer and the one before are still referred to.
    around = 3 * N * C * s + (N * C * a if job.bytes.autocast else 0) + 2 * (query + 2 * key) * a
    return around + max(attention, feed_forward + N * C * (s + a))


def mask_bytes(job: TrainingJob, rows: int, tokens: int) -> float:
    """Additive masks, one for each window, where a path takes one."""
    config, total = job.config, 0.0
    for window in set(config.windows):
        path = path_name(job, window, rows, tokens)
        causal = path in ("flash", "math") and window is None and not job.documents and config.position != "alibi"
        if path in ("blocked", "flex") or causal:
            continue
        heads = config.n_head if config.position == "alibi" else 1
        total += tokens * tokens * job.bytes.compute * heads * (rows if job.documents else 1)
    return total


def copy_bytes(job: TrainingJob, layer: int, but: str = "none") -> int:
    """Under autocast, of the matrices of one layer in the type of the products: they are kept from the forward pass to
    the layer's backward pass.

    Args:
        but: leave out those of this part of the block, attention or feed_forward.
    """
    if not job.bytes.autocast:
        return 0
    hidden = (one for one in inventory(job.config)[0] if one.layer == layer and one.kind == "hidden")
    counted = (one for one in hidden if "router" not in one.name and f".{but}." not in one.name)
    return job.bytes.compute * sum(one.numbers for one in counted)
