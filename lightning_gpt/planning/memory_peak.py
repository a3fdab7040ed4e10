"""What is held at each moment of an optimizer step, and which moment holds most."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from lightning_gpt.data.loader import PREFETCH
from lightning_gpt.nn.flops import kv_cache_bytes
from lightning_gpt.planning.memory_activations import block_use, copy_bytes, ends_use, mask_bytes, passing_bytes
from lightning_gpt.planning.memory_head import head_use
from lightning_gpt.planning.memory_job import TrainingJob
from lightning_gpt.planning.memory_recompute import block_modes, kept_bytes, late_copies
from lightning_gpt.planning.memory_states import (
    communication_bytes,
    gradient_bytes,
    largest_gradient_bytes,
    optimizer_bytes,
    step_bytes,
    weight_bytes,
)

LASTING = ("weights", "gradients", "optimizer", "communication", "batches")
"""Components that are the same in every step, or nearly."""
COMPONENTS = (
    *LASTING,
    "activations",
    "recomputed block",
    "weight copies",
    "logits and loss",
    "working tensors",
    "key/value cache",
)
"""Parts of a moment, in the order in which they are shown."""
FORWARD, BACKWARD = "end of the forward pass", "backward pass of the last block"
RECOMPUTED = "backward pass of a recomputed block"
LOSS, EMBEDDING = "start of the backward pass", "end of the backward pass"
STEP, VALIDATION, SAMPLING = "optimizer step", "validation", "sampling"


@dataclass(frozen=True)
class Moment:
    """What is held at one moment."""

    name: str
    parts: Mapping[str, float]
    """Component -> bytes."""

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.parts.values())

    @property
    def lasting(self) -> float:
        """Bytes of what is the same in every step."""
        return sum(self.parts.get(name, 0) for name in LASTING)


@lru_cache(maxsize=512)
def moments(job: TrainingJob) -> tuple[Moment, ...]:
    """Every moment of a step that can be the fullest, a validation and a sampling.

    Lightning frees the gradients of the step before only after the forward pass, so both meet at its end. An optimizer
    that steps in the backward pass leaves none: there is one at a time, and what its update takes.
    """
    rows, tokens, layers = job.batch_size, job.block_size, range(job.config.n_layer)
    N, weight = rows * tokens, job.bytes.weights
    uses = [block_use(job, layer, rows, tokens) for layer in layers]
    modes = block_modes(job)
    again = [mode != "none" for mode in modes]
    kept = [kept_bytes(job, layer, modes[layer]) for layer in layers]
    copies = [copy_bytes(job, layer) for layer in layers]
    late = [late_copies(job, layer, modes[layer]) for layer in layers]
    ends, head = ends_use(job, rows, tokens), head_use(job, N)
    saved, mask, gradients = ends.saved + sum(kept), mask_bytes(job, rows, tokens), _gradients(job)
    embedding = job.config.padded_vocab_size * job.config.n_embd * weight
    batch = N * 8 * (3 if job.documents else 2)
    always = {
        "weights": weight_bytes(job),
        "optimizer": optimizer_bytes(job),
        "communication": communication_bytes(job),
        "batches": batch * (2 + (PREFETCH + 1 if job.prefetch else 0)),
    }
    early = gradients if job.accumulate > 1 else 0  # of the micro-batches before
    last = layers[-1]
    inside = step_bytes(job) if job.steps_in_backward else 0

    def moment(name: str, gradients: float, **parts: float) -> Moment:
        return Moment(name, always | {"gradients": gradients} | {key.replace("_", " "): v for key, v in parts.items()})

    loss = {"logits and loss": head.held + head.forward}
    found = [
        moment(FORWARD, gradients, activations=saved, weight_copies=sum(late) + head.copies, working_tensors=mask),
        moment(LOSS, early, activations=saved, weight_copies=sum(late) + head.copies, working_tensors=mask),
        moment(
            BACKWARD,
            early + _gradients(job, range(last, last + 1)),
            activations=saved,
            weight_copies=sum(late),
            working_tensors=embedding + uses[last].working + inside,
        ),
        moment(EMBEDDING, gradients + early, activations=ends.saved + kept[0], working_tensors=2 * embedding + inside),
        moment(STEP, gradients, working_tensors=step_bytes(job)),
    ]
    if any(again):
        block = max(layer for layer in layers if again[layer])
        if block == last:
            found = [one for one in found if one.name != BACKWARD]
        found.append(
            moment(
                RECOMPUTED,
                early + _gradients(job, range(block, last + 1)),
                activations=saved - sum(kept[block + 1 :]),
                recomputed_block=max(uses[block].saved - kept[block], 0) + uses[block].working,
                weight_copies=sum(late[:block]) + copies[block],
                working_tensors=embedding + inside,
            )
        )
    found[0] = Moment(FORWARD, found[0].parts | loss)
    found[1] = Moment(LOSS, found[1].parts | {"logits and loss": head.held + head.backward})
    if job.validation[0]:
        found.append(moment(VALIDATION, gradients, **_validation(job)))
    if job.sample_rows and job.sample_tokens:
        size = min(job.sample_tokens, job.config.block_size)
        cache_bytes = job.sample_rows * kv_cache_bytes(job.config, size, job.weight_dtype)
        found.append(moment(SAMPLING, gradients, **{"key/value cache": cache_bytes}))
    return tuple(found)


def _gradients(job: TrainingJob, layers: range | None = None) -> float:
    """Bytes of the gradients that are there when those of some blocks, or of all parameters, have been computed."""
    if not job.steps_in_backward:
        return gradient_bytes(job, layers)
    return 0 if layers is None else largest_gradient_bytes(job, layers)


def _validation(job: TrainingJob) -> dict[str, float]:
    """Nothing is kept from layer to layer: either the fullest layer or the logits are the most."""
    rows, tokens = job.validation
    layers = range(job.config.n_layer)
    stream = 2 * rows * tokens * job.config.n_embd * job.bytes.weights
    layer = max(passing_bytes(job, layer, rows, tokens) for layer in layers)
    logits = head_use(job, rows * tokens, training=False).forward
    most = {"activations": stream, "logits and loss": logits} if stream + logits > layer else {"activations": layer}
    copies = sum(copy_bytes(job, layer) for layer in layers)
    return {"weight copies": copies, "working tensors": mask_bytes(job, rows, tokens), **most}
