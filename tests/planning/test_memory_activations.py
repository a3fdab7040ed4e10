"""The formulas of what autograd keeps, against what autograd keeps."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.parallel.recompute import recompute
from lightning_gpt.planning.memory_activations import block_use, copy_bytes, ends_use
from lightning_gpt.planning.memory_head import chunked, head_use
from lightning_gpt.planning.memory_job import PRECISIONS, TrainingJob
from lightning_gpt.planning.memory_peak import FORWARD, moments
from lightning_gpt.planning.memory_recompute import block_cost, block_modes, late_copies
from lightning_gpt.planning.memory_recompute import kept_bytes as kept_bytes_of

ON_CPU = [name for name in PRECISIONS if not name.startswith("16")]
LLAMA = {"feed_forward": "swiglu", "norm": "rmsnorm", "position": "rotary"}
NETWORKS = {
    "gpt": (32, {}),
    "biases": (32, {"bias": True}),
    "blocked or plain": (200, {}),
    "fused": (1024, {}),
    "fused, grouped": (1024, {"n_kv_head": 2, "position": "rotary"}),
    "llama": (200, {**LLAMA, "n_kv_head": 2}),
    "demo": (
        200,
        {**LLAMA, "feed_forward": "relu2", "norm_affine": False, "qk_norm": True, "tie_embeddings": False},
    ),
    "relu": (32, {"feed_forward": "relu"}),
    "dropout": (32, {"dropout": 0.1}),
    "dropout, long": (1100, {"dropout": 0.1, "n_head": 1}),
    "alibi, long": (1100, {"position": "alibi", "n_head": 2}),
    "post-norm": (32, {"norm_place": "post"}),
    "sandwich": (32, {"norm_place": "sandwich", "norm": "rmsnorm"}),
    "parallel": (32, {"parallel_residual": True}),
    "window": (600, {"window": 64}),
    "capped": (32, {"attention_softcap": 10.0, "attention_sinks": False}),
    "sinks": (32, {"attention_sinks": True}),
    "skips": (1024, {"value_skip": True, "input_skip": True}),
    "query and key norms": (1024, {"qk_norm": True, "position": "rotary", "rope_fraction": 0.5, "n_kv_head": 2}),
}
ROWS = 2


def make_job(tokens: int, precision: str, layers: int = 2, vocab_size: int = 84, **fields) -> TrainingJob:
    network = {"n_head": 4, "n_embd": 64, "bias": False, **fields}
    config = GPTConfig(vocab_size=vocab_size, block_size=tokens, n_layer=layers, **network)
    return TrainingJob(config, ROWS, tokens, precision=precision)


def kept_bytes(job: TrainingJob) -> int:
    """Bytes of all storages that autograd keeps of one loss, parameters and tables left out."""
    torch.manual_seed(0)
    network = GPT(job.config).to(job.weight_dtype)
    if job.weight_dtype != torch.float32:
        network.build_tables()
    recompute(network, job.activation_checkpointing)
    own = {one.untyped_storage()._cdata for one in (*network.parameters(), *network.buffers())}
    storages, held = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage.nbytes()
            held.append(tensor)  # so that no other storage takes its place in memory
        return tensor

    ids, targets = (torch.randint(job.config.vocab_size, (job.batch_size, job.block_size)) for _ in range(2))
    with (
        saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=job.bytes.autocast),
    ):
        loss = network.training_loss if job.config.moe is not None else network.loss
        result = loss(ids, targets)
    del result
    return sum(storages.values())


@pytest.mark.parametrize("precision", ON_CPU)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_block_keeps_what_the_formula_says(name, precision):
    tokens, fields = NETWORKS[name]
    two, three = (make_job(tokens, precision, layers, **fields) for layers in (2, 3))
    block = block_use(three, 2, ROWS, tokens).saved + copy_bytes(three, 2)
    assert kept_bytes(three) - kept_bytes(two) == pytest.approx(block, abs=2)  # 2: a scalar of value_skip


@pytest.mark.parametrize("precision", ON_CPU)
@pytest.mark.parametrize("name", ["gpt", "llama", "demo", "dropout", "post-norm"])
def test_a_network_keeps_what_the_formulas_say(name, precision):
    tokens, fields = NETWORKS[name]
    job = make_job(tokens, precision, **fields)
    blocks = sum(block_use(job, layer, ROWS, tokens).saved + copy_bytes(job, layer) for layer in range(2))
    head = head_use(job, job.tokens)
    whole = blocks + ends_use(job, ROWS, tokens).saved + head.held + head.copies
    assert not chunked(job, job.tokens)
    assert kept_bytes(job) == pytest.approx(whole, rel=0.03)  # targets and the tied head are in two terms


@pytest.mark.parametrize("precision", ON_CPU)
def test_a_checkpointed_block_keeps_its_input(precision):
    two, three = (replace(make_job(64, precision, layers), activation_checkpointing=1) for layers in (2, 3))
    assert kept_bytes(three) - kept_bytes(two) == ROWS * 64 * 64 * three.bytes.weights


@pytest.mark.parametrize("precision", ON_CPU)
@pytest.mark.parametrize("mode", ["selective", "attention", "feed_forward"])
@pytest.mark.parametrize("name", ["biases", "llama", "demo", "dropout", "fused, grouped", "sandwich", "capped"])
def test_a_partly_checkpointed_block_keeps_what_the_formula_says(name, mode, precision):
    tokens, fields = NETWORKS[name]
    jobs = (make_job(tokens, precision, layers, **fields) for layers in (2, 3))
    two, three = (replace(job, activation_checkpointing=mode) for job in jobs)
    block = kept_bytes_of(three, 2, mode) + late_copies(three, 2, mode)
    assert kept_bytes(three) - kept_bytes(two) == pytest.approx(block, abs=2)


@pytest.mark.parametrize("precision", ON_CPU)
def test_a_budget_is_met_as_in_training(precision):
    job = replace(make_job(200, precision, 4, **LLAMA, n_kv_head=2), activation_checkpointing=0.4)
    network = GPT(job.config).to(job.weight_dtype)
    network.build_tables()
    recompute(network, 0.4)
    ids = torch.randint(job.config.vocab_size, (ROWS, 200))
    with torch.autocast("cpu", torch.bfloat16, enabled=job.bytes.autocast):
        network.loss(ids, ids)
    chosen = network.blocks[0].forward.args[1].func.__self__
    assert list(block_modes(job)) == chosen.modes and set(chosen.modes) != {"none"}
    for layer in range(1, 4):  # of the first the input is the embedding, which others may hold too
        for mode, size in block_cost(job, layer).kept.items():
            assert chosen.costs[layer].kept[mode] == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize(
    "moe",
    [
        MoEConfig(experts=4, top_k=2),
        MoEConfig(experts=4, top_k=2, routing="sigmoid", balance="bias", shared=1),
        MoEConfig(experts=4, top_k=1, routing="expert_choice"),
    ],
    ids=["softmax", "shared", "expert choice"],
)
@pytest.mark.parametrize("precision", ON_CPU)
def test_experts_keep_nearly_what_the_formula_says(moe, precision):
    # Rows of 16 bits are filled up to multiples that depend on the loads.
    two, three = (make_job(256, precision, layers, moe=moe, ffn_hidden=96) for layers in (2, 3))
    block = block_use(three, 2, ROWS, 256).saved + copy_bytes(three, 2)
    assert kept_bytes(three) - kept_bytes(two) == pytest.approx(block, rel=0.05)
    for mode in ("selective", "attention", "feed_forward"):
        some, more = (replace(job, activation_checkpointing=mode) for job in (two, three))
        block = kept_bytes_of(more, 2, mode) + late_copies(more, 2, mode)
        assert kept_bytes(more) - kept_bytes(some) == pytest.approx(block, rel=0.08), mode


@pytest.mark.parametrize("precision", ON_CPU)
def test_a_large_vocabulary_holds_gradients_in_place_of_logits(precision):
    small, large = make_job(64, precision, vocab_size=84), make_job(2048, precision, vocab_size=5000)
    assert not chunked(small, small.tokens) and chunked(large, large.tokens)
    C, V, N = 64, 5000, large.tokens
    gradients = N * C * large.bytes.compute + V * C * large.bytes.weights
    assert head_use(large, N).held == pytest.approx(gradients, rel=0.03)  # and the targets
    assert head_use(large, N).held < 4 * N * V / 10  # all logits in float32
    assert moments(large)[0].name == FORWARD
