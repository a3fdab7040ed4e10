"""What a run takes beyond its tensors: the process, what the heap loses in holes, compiled matrix products.

The shares and the process' figures were fitted on the runs that benchmarks/results/memory_plan.md calls
calibration, and judged on those that it calls held out.
"""

from dataclasses import dataclass, replace

from lightning_gpt.nn.moe import CPU_ROW_MULTIPLE
from lightning_gpt.optim import AdamW8bit
from lightning_gpt.planning.memory_job import TrainingJob
from lightning_gpt.planning.memory_peak import (
    BACKWARD,
    COMPONENTS,
    EMBEDDING,
    FORWARD,
    LOSS,
    RECOMPUTED,
    STEP,
    VALIDATION,
    Moment,
    moments,
)

MiB = 1 << 20
IMPORTED = 703 * MiB
"""Resident memory of Python with torch (its build with CUDA), Lightning and the command line."""
STARTED = 60 * MiB
"""What setting up the trainer, loggers and the first products add."""
CURVE = 23 * MiB
"""matplotlib, which draws the loss curve when a run ends."""
ENDED = 112 * MiB
"""What the end of the process touches once more, after training: a process that holds nothing else grows by it too."""
BITSANDBYTES = 48 * MiB
CUDA_CONTEXT = 600 * MiB
"""Of a process on a GPU with cuBLAS' workspace, outside the caching allocator. Not measured here."""
PRODUCT = 0.62 * MiB
"""oneDNN compiles a matrix product for every shape and keeps it."""
PRODUCTS_KEPT = 1024
"""How many it keeps."""


@dataclass(frozen=True)
class Shares:
    """What bytes of tensors take on the heap.

    A step makes and frees hundreds of tensors of a few sizes. glibc's heap, as cli/allocator.py sets it, never shrinks,
    and a hole takes no tensor of its own size, for alignment asks for some bytes more (glibc before 2.38).
    """

    passing: float
    """A byte of what is made and freed in every step."""
    recomputed: float
    """A byte of a block that is computed again, where every tensor is made anew for each block."""
    step: float
    """A byte of the optimizer's own tensors, beyond the peak of training: few fit into its holes."""
    reused: float
    """Share of what training took that serves a validation in larger batches."""


TRAINING = (FORWARD, LOSS, BACKWARD, RECOMPUTED, EMBEDDING)
SHARES = {"cpu": Shares(1.45, 3.0, 0.45, 0.4), "cuda": Shares(1.1, 1.1, 0.0, 1.0)}
"""cuda: of PyTorch's caching allocator, which rounds to 2 MiB. Not measured here."""


@dataclass(frozen=True)
class MemoryPlan:
    """What one device of a run needs."""

    job: TrainingJob
    peak: Moment
    """The fullest moment, without overheads."""
    allocator: float
    """Bytes of holes and of tensors of other moments that found no place in them."""
    products: float
    """Bytes of compiled matrix products."""
    process: float
    """Bytes of the process without its training."""

    @property
    def total(self) -> float:
        """Bytes at the peak: of a process on CPU, of the device on a GPU."""
        return self.peak.total + self.allocator + self.products + self.process

    def parts(self) -> dict[str, float]:
        """All components with their bytes, those that are nothing left out."""
        extra = {"allocator": self.allocator, "compiled products": self.products, "process": self.process}
        found = {name: self.peak.parts.get(name, 0.0) for name in COMPONENTS} | extra
        return {name: size for name, size in found.items() if size > 0}


def process_bytes(job: TrainingJob, imported: float = IMPORTED, curve: bool = True) -> float:
    """Of Python, libraries and the trainer, without tensors.

    Args:
        imported: resident memory of a process that has imported what `fit` does.
        curve: whether a loss curve is drawn.
    """
    if job.device == "cuda":
        return CUDA_CONTEXT
    return imported + STARTED + ENDED + CURVE * curve + BITSANDBYTES * isinstance(job.optimizer, AdamW8bit)


def product_bytes(job: TrainingJob) -> float:
    """Of the experts' products in 16 bits on CPU: loads are never the same twice, so there are as many shapes as
    numbers of rows (up to twice the mean) times the six products of a feed-forward. Those in float32 need none."""
    moe, multiple = job.config.moe, CPU_ROW_MULTIPLE.get(job.dtype)
    if moe is None or job.device != "cpu" or multiple is None:
        return 0.0
    mean = job.tokens * moe.top_k / moe.experts
    shapes = 6 if moe.routing == "expert_choice" else 6 * 2 * mean / multiple
    return PRODUCT * min(shapes, PRODUCTS_KEPT)


def heap_bytes(job: TrainingJob) -> float:
    """All tensors with what they lose to holes."""
    shares = SHARES[job.device]
    by_name = {moment.name: moment for moment in moments(job)}
    lasting = max(moment.lasting for name, moment in by_name.items() if name in (FORWARD, STEP))

    def taken(moment: Moment) -> float:
        recomputed = moment.parts.get("recomputed block", 0)
        passing = moment.total - moment.lasting - recomputed
        return max(moment.lasting - lasting, 0) + shares.passing * passing + shares.recomputed * recomputed

    training = max(taken(one) for name, one in by_name.items() if name in TRAINING)
    step = by_name[STEP]
    own = step.total - step.lasting
    dynamic = max(training + shares.step * own, shares.passing * own)
    if VALIDATION in by_name:
        validating = taken(by_name[VALIDATION])
        rows, tokens = job.validation
        # Tensors that are larger than those of training find room only where several holes lie side by side.
        apart = rows * tokens > job.tokens and job.device == "cpu"
        dynamic = max(dynamic, validating + (1 - shares.reused) * dynamic if apart else validating)
    return lasting + dynamic


def plan_memory(job: TrainingJob, imported: float = IMPORTED, curve: bool = True) -> MemoryPlan:
    """The peak of a run on one device.

    Args:
        job: the run.
        imported, curve: see process_bytes.
    """
    peak = max(moments(job), key=lambda moment: moment.total)
    allocator = max(heap_bytes(job) - peak.total, 0.0)
    return MemoryPlan(job, peak, allocator, product_bytes(job), process_bytes(job, imported, curve))


def largest_batch(job: TrainingJob, budget: float, imported: float = IMPORTED, curve: bool = True) -> int:
    """The most windows of one device and forward pass that fit into a budget; 0 = not even one.

    A validation batch that follows the training batch grows with it; one of its own size stays.

    Args:
        job: batch_size is replaced.
        budget: bytes of one device.
        imported, curve: see process_bytes.
    """

    def fits(rows: int) -> bool:
        return plan_memory(replace(job, batch_size=rows), imported, curve).total <= budget

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
        if high > 1 << 24:
            return low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
