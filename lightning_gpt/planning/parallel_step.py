"""How long a step takes on many devices: what is computed, what communication adds, who waits for whom.

Every strategy is played through on one device, with one link that does one thing at a time beside the computing:

- DDP (Li et al., 2020): in the backward pass of the last micro-batch gradients fall into buckets of 25 MiB, last block
  first; a full bucket is all-reduced while the pass goes on. What is ready last - the embedding, which a tied head
  keeps waiting - has nothing left to hide behind.
- FSDP (Zhao et al., 2023; FSDP2's order): a block's weights are gathered while the block before it computes, in the
  forward and again in the backward pass; its gradients are reduce-scattered while the next block's backward pass runs.
  What is outside the blocks is gathered once, before the first of them.
- HSDP: FSDP within a node; then each device all-reduces its shard of the gradients with those of other nodes.
- Tensor parallelism (Shoeybi et al., 2019, section 3): two all-reduces of the stream a block in each pass, which the
  next product waits for; one for the embedding and one for the head's gradient.

The efficiencies that are often quoted for DDP on eight A100, 0.95 with NVLink and 0.80 over PCIe, are what this gives
for GPT-2's four sizes with 16 windows of 1,024 tokens a device and step and PyTorch's own DDP, which copies float32
gradients into buckets: 0.96 to 0.97, and 0.76 to 0.86. They belong to the work as much as to the link: what is sent
does not depend on the batch, so half the windows leave 0.94 to 0.95 and 0.53 to 0.56.
"""

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from lightning_gpt.planning.memory_job import TrainingJob
from lightning_gpt.planning.parallel_layout import Cluster, Layout
from lightning_gpt.planning.parallel_work import Work

MiB = 1 << 20
BUCKET = 25 * MiB
"""DDP's bucket_cap_mb."""
FIRST_BUCKET = MiB
"""Of the first: it starts the traffic early."""
SPREAD = 0.01
"""Standard deviation of a device's computing time from step to step, as a share of it: clocks, kernels, the host. An
assumption; on a shared or throttling machine it is many times that."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step on one device."""

    compute: float
    """Forward and backward passes, recomputation among them."""
    exposed: float
    """Communication that nothing hides, and what hidden communication slows computing by."""
    waiting: float
    """For the slowest device."""
    optimizer: float
    communication: float
    """Of all collectives, hidden or not."""

    @property
    def total(self) -> float:
        """Of the step."""
        return self.compute + self.exposed + self.waiting + self.optimizer

    @property
    def efficiency(self) -> float:
        """Share of the step that one device alone would need for the same work: what communication leaves."""
        return (self.compute + self.optimizer) / self.total


def slowest(devices: int) -> float:
    """Expected largest of so many standard normal numbers (Blom, 1958): 0 of one, 1.42 of 8, 3.2 of 1,000."""
    return NormalDist().inv_cdf((devices - 0.375) / (devices + 0.25)) if devices > 1 else 0.0


class Clock:
    """A device that computes and a link beside it, each doing one thing at a time."""

    def __init__(self) -> None:
        self.now = self.link_free = self.busy = 0.0
        self.computed = 0.0

    def compute(self, seconds: float, after: float = 0.0) -> None:
        """Computes, not before `after`."""
        self.now = max(self.now, after) + seconds
        self.computed += seconds

    def send(self, seconds: float) -> float:
        """Starts a collective when the link is free; the time of its end."""
        self.link_free = max(self.link_free, self.now) + seconds
        self.busy += seconds
        return self.link_free

    def block(self, seconds: float) -> None:
        """A collective whose result is waited for."""
        self.now = self.send(seconds)

    def join(self) -> None:
        """Waits for the link."""
        self.now = max(self.now, self.link_free)

    def exposed(self, interference: float) -> float:
        """Seconds that communication adds: waits, and computing that is slowed by what runs beside it."""
        waits = self.now - self.computed
        return waits + interference * max(self.busy - waits, 0.0)


def step_time(work: Work, spread: float = SPREAD) -> StepTime:
    """Plays a step through.

    Args:
        work: layout, devices and run.
        spread: see SPREAD.
    """
    layout = work.layout
    if layout.devices == 1:
        return StepTime(work.compute, 0.0, 0.0, work.optimizer, 0.0)
    # Micro-batches end with the link at rest, so all are alike but the last, in which gradients are summed.
    first, last = Clock(), Clock()
    play = _sharded if layout.shard > 1 else _replicated
    play(work, first, sync=layout.shard > 1 and layout.sync_every)
    play(work, last, sync=layout.data > 1)
    interference, before = _interference(work), layout.accumulate - 1
    exposed = before * first.exposed(interference) + last.exposed(interference)
    if layout.strategy == "ddp" and not work.base.bucket_view:  # gradients are copied into buckets and back
        exposed += 4 * work.number_bytes * sum(work.numbers.values()) / work.memory_bandwidth
    update = 0.0
    if layout.shard > 1 and work.muon_numbers:  # updates are gathered to be orthogonalised, and so is what comes of it
        group = work.cluster.group(layout.shard, stride=layout.tensor)
        update = 2 * group.all_gather(work.muon_numbers * work.number_bytes)
    waiting = spread * slowest(layout.devices) * work.compute
    communication = before * first.busy + last.busy + update
    return StepTime(work.compute, exposed + update, waiting, work.optimizer, communication)


def _interference(work: Work) -> float:
    return max(work.cluster.within.interference, work.cluster.between.interference * (work.cluster.nodes > 1))


def _tensor_reduce(work: Work, clock: Clock, times: int, size: int) -> None:
    """All-reduces of the stream over a tensor-parallel group, on the critical path."""
    if work.layout.tensor > 1:
        group = work.cluster.group(work.layout.tensor)
        for _ in range(times):
            clock.block(group.all_reduce(work.tokens * work.base.config.n_embd * size))


def _block_forward(work: Work, clock: Clock, layer: int, after: float = 0.0) -> None:
    clock.compute(work.blocks[layer], after)
    _tensor_reduce(work, clock, 2, work.base.bytes.compute)


def _block_backward(work: Work, clock: Clock, layer: int, after: float = 0.0) -> None:
    clock.compute(work.backward(layer), after)
    _tensor_reduce(work, clock, 4 if work.recomputed(layer) else 2, work.base.bytes.compute)


def _head(work: Work, clock: Clock) -> None:
    """Forward and backward pass of the output head."""
    clock.compute(3 * work.head)
    _tensor_reduce(work, clock, 1, work.base.bytes.compute)


def _replicated(work: Work, clock: Clock, sync: bool) -> None:
    """One micro-batch where every device has all weights, or its slices of all."""
    layers = range(work.base.config.n_layer)
    _tensor_reduce(work, clock, 1, work.base.bytes.weights)
    for layer in layers:
        _block_forward(work, clock, layer)
    buckets = _Buckets(work, clock) if sync else None
    _head(work, clock)
    outside = work.numbers[None] * work.number_bytes
    if buckets and not work.base.config.tie_embeddings:
        head = work.base.config.padded_vocab_size * work.base.config.n_embd * work.number_bytes
        buckets.add(head)
        outside -= head
    for layer in reversed(layers):
        _block_backward(work, clock, layer)
        if buckets:
            buckets.add(work.numbers[layer] * work.number_bytes)
    if buckets:
        buckets.add(outside)
        buckets.flush()
        clock.join()


class _Buckets:
    """Gradients on their way to an all-reduce."""

    def __init__(self, work: Work, clock: Clock) -> None:
        self.group = work.cluster.group(work.layout.replicas)
        self.clock, self.held, self.limit = clock, 0, FIRST_BUCKET

    def add(self, size: int) -> None:
        """Bytes of gradients that are ready; a bucket goes when it is full."""
        self.held += size
        if self.held >= self.limit:
            self.flush()

    def flush(self) -> None:
        """Sends what is held, cut into buckets."""
        while self.held:
            part = min(self.held, max(self.limit, BUCKET))
            self.clock.send(self.group.all_reduce(part))
            self.held -= part
        self.limit = BUCKET


def _sharded(work: Work, clock: Clock, sync: bool) -> None:
    """One micro-batch where weights lie in shards."""
    layers = range(work.base.config.n_layer)
    layout, size = work.layout, work.number_bytes
    group = work.cluster.group(layout.shard, stride=layout.tensor)
    copies = work.cluster.group(layout.replicas, stride=layout.shard * layout.tensor)
    blocks = [group.all_gather(work.numbers[layer] * size) for layer in layers]

    def scatter(layer: int | None) -> None:
        clock.send(group.reduce_scatter(work.numbers[layer] * size))
        if layout.replicas > 1:
            clock.send(copies.all_reduce(work.numbers[layer] * size / layout.shard))

    clock.block(group.all_gather(work.numbers[None] * size))
    ready = clock.send(blocks[0])
    _tensor_reduce(work, clock, 1, work.base.bytes.weights)
    for layer in layers:
        clock.now = max(clock.now, ready)
        if layer + 1 < len(layers):
            ready = clock.send(blocks[layer + 1])
        _block_forward(work, clock, layer)
    ready = clock.send(blocks[-1])
    _head(work, clock)
    for layer in reversed(layers):
        clock.now = max(clock.now, ready)
        if layer:
            ready = clock.send(blocks[layer - 1])
        _block_backward(work, clock, layer)
        if sync:
            scatter(layer)
    if sync:
        scatter(None)
    clock.join()


@lru_cache(maxsize=65536)
def predict(base: TrainingJob, layout: Layout, cluster: Cluster, spread: float = SPREAD) -> StepTime:
    """The step of a run under a layout.

    Args:
        base: network, window, optimizer, precision.
        layout, cluster: where it runs.
        spread: see SPREAD.
    """
    return step_time(Work(base, layout, cluster), spread)
