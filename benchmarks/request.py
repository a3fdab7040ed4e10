"""What one measurement measures."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Shape:
    """A network and its batch: the same numbers for every contestant."""

    name: str
    n_layer: int
    n_head: int
    n_embd: int
    batch_size: int
    block_size: int
    vocab_size: int
    window_steps: int
    """Optimizer steps of one timed window, by default."""

    @property
    def tokens(self) -> int:
        """Of one optimizer step."""
        return self.batch_size * self.block_size

    def __str__(self) -> str:
        shape = f"{self.n_layer}x{self.n_head}x{self.n_embd}, {self.batch_size}x{self.block_size} tokens"
        return f"{self.name}: {shape}, vocabulary {self.vocab_size}"


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("S", 4, 4, 128, 12, 64, 65, window_steps=100),
        Shape("M", 6, 6, 384, 16, 256, 65, window_steps=6),
        Shape("L", 12, 12, 768, 1, 1024, 50304, window_steps=3),
        Shape("GPU", 12, 12, 768, 32, 1024, 50304, window_steps=20),  # GPT-2 124M on one large GPU
    )
}

SETTINGS: dict[str, tuple[bool, bool]] = {
    "fp32": (False, False),
    "fp32-compiled": (False, True),
    "bf16": (True, False),
    "bf16-compiled": (True, True),
}
"""name -> (bfloat16 autocast, torch.compile)."""


@dataclass(frozen=True)
class Request:
    """One contestant at one size and setting, for a process of its own."""

    contestant: str
    size: str
    setting: str
    windows: int
    """Timed windows, after one of the same length that warms up (and compiles)."""
    window_steps: int
    device: str
    nanogpt: str | None
    """nanoGPT's directory."""
    workdir: str
    """Holds corpora, and takes whatever a run leaves behind."""

    @property
    def shape(self) -> Shape:
        """Network and batch."""
        return SHAPES[self.size]

    @property
    def bf16(self) -> bool:
        """Whether matrix products run in bfloat16 by autocast."""
        return SETTINGS[self.setting][0]

    @property
    def compiled(self) -> bool:
        """Whether torch.compile is used."""
        return SETTINGS[self.setting][1]
