"""Exercises of 07, improvements of the architecture."""

from __future__ import annotations

from typing import Any

from lightning_gpt.learning.chapter_05 import reference_attention
from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.judging import close, equal, function, number, same
from lightning_gpt.learning.runs import opened, own_study


def check_cache(answer: dict) -> None:
    """Bytes of keys and values in bfloat16."""
    import torch

    from lightning_gpt.nn.flops import kv_cache_bytes
    from lightning_gpt.nn.presets import PRESETS

    for name in ("llama2-7b", "mistral-7b"):
        for tokens in (1, 4096):
            key = f"{name.replace('-', '_')}_{'token' if tokens == 1 else tokens}"
            close(key, answer.get(key), kv_cache_bytes(PRESETS[name], tokens, torch.bfloat16), 1e-6)


def check_alibi(answer: dict) -> None:
    """Where 10 is taken off."""
    from lightning_gpt.nn.positions import alibi_slopes

    given = answer.get("distances")
    if not isinstance(given, list) or len(given) != 4:
        raise Wrong("distances: a list of four is wanted")
    for head, (mine, slope) in enumerate(zip(given, alibi_slopes(4))):
        close(f"distance of head {head}", mine, 10 / float(slope), 0.02)


KINDS = ("linear", "ntk", "yarn")


def check_longer(answer: dict) -> None:
    """Losses of a run read at 64 and 256 with three scalings."""
    run = opened(answer)
    if run.settings.get("model.config.position") != "rotary" or run.settings.get("data.block_size") != 64:
        raise Wrong(f"{run.directory} is no rotary run of block_size 64")
    losses: dict[int, dict[str, float]] = {}
    for length in (64, 256):
        table = answer.get(f"loss_at_{length}") or {}
        losses[length] = {kind: number(f"loss_at_{length}: {kind}", table.get(kind)) for kind in KINDS}
        best = min(KINDS, key=losses[length].__getitem__)
        equal(f"best_at_{length}", answer.get(f"best_at_{length}"), best)


ROTATE_STUB = '''
import torch


def rotate(x, positions, theta=10000.0):
    """Rotary embedding (Su et al., 2021) in the half-split layout of LLaMA.

    Number i of the first half of a head and number i of its second half are a pair, turned by the angle
    position * theta^(-2 i / D), from the first towards the second.

    Args:
        x: (B, H, T, D), D even.
        positions: (T,) int64.

    Returns:
        (B, H, T, D).
    """
    raise NotImplementedError


if __name__ == "__main__":
    x = torch.randn(1, 1, 4, 8)
    assert torch.allclose(rotate(x, torch.zeros(4, dtype=torch.long)), x), "position 0 turns nothing"
    assert torch.allclose(rotate(x, torch.arange(4)).norm(dim=-1), x.norm(dim=-1)), "turning keeps lengths"
    print("as far as this goes, right; now: lightning-gpt learn check THIS")
'''


def reference_rotate(x: Any, positions: Any, theta: float = 10000.0) -> Any:
    """nn/positions.py."""
    from lightning_gpt.nn.positions import RotaryTable, rotate

    table = RotaryTable(x.shape[-1], int(positions.max()) + 1, theta)
    return rotate(x, *table(positions[None], x.dtype))


def check_rotate(answer: Any) -> None:
    """Against ours; scores depend on distance alone."""
    import torch

    mine = function(answer, "rotate")
    for D, theta in ((2, 10000.0), (8, 10000.0), (16, 500.0)):
        q, k = torch.randn(2, 1, 2, 6, D).unbind()
        places = torch.tensor([0, 1, 2, 3, 5, 9])
        given = mine(q.clone(), places, theta)
        if getattr(given, "shape", None) == q.shape:
            near = mine(q, places, theta) @ mine(k, places, theta).transpose(-2, -1)
            far = mine(q, places + 17, theta) @ mine(k, places + 17, theta).transpose(-2, -1)
            if (near - far).abs().max() > 1e-3:
                raise Wrong("scores do not depend on distance alone: moving all positions by 17 changes them")
        same(f"rotate, D={D}, theta={theta:g}", given, reference_rotate(q, places, theta), 5e-6)


BLOCKED_STUB = '''
import torch


def blocked_attention(q, k, v, block):
    """Causal attention that reads keys and values in blocks and never holds all T x T scores (FlashAttention's idea).

    For each query keep the largest score so far, the sum of exp(score - largest) and the weighted sum of values; when
    a block brings a larger score, both sums are scaled down.

    Args:
        q, k, v: (B, H, T, D).
        block: how many keys are read at a time; T need not be a multiple.

    Returns:
        (B, H, T, D).
    """
    raise NotImplementedError


if __name__ == "__main__":
    q, k, v = torch.randn(3, 1, 2, 10, 4).unbind()
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    print("largest difference", float((blocked_attention(q, k, v, 4) - wanted).abs().max()))
'''


def solve_blocked(q: Any, k: Any, v: Any, block: int) -> Any:
    """By this package's own attention, a query at a time: small, not quick."""
    import torch

    from lightning_gpt.nn.attention_paths import plain_attention

    rows = [
        plain_attention(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], None, q.shape[-1] ** -0.5, 0.0)
        for t in range(q.shape[2])
    ]
    return torch.cat(rows, dim=2)


def check_blocked(answer: Any) -> None:
    """Values, large scores, and the largest tensor that was made."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            found = operation(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                self.largest = max(self.largest, found.numel())
            return found

    mine = function(answer, "blocked_attention")
    for T, block in ((1, 4), (8, 4), (13, 4), (96, 8)):
        q, k, v = torch.randn(3, 1, 1, T, 4).unbind()
        with Sizes() as sizes:
            given = mine(q.clone(), k.clone(), v.clone(), block)
        same(f"blocked_attention, T={T}, block={block}", given, reference_attention(q, k, v))
        if T == 96 and sizes.largest >= T * T:
            raise Wrong(f"a tensor of {sizes.largest:,} numbers was made: with blocks of 8, {T} x {T} is never needed")
    q, k, v = torch.randn(3, 1, 2, 9, 8).unbind()
    same("with scores of some hundreds", mine(60 * q, 60 * k, v, 4), reference_attention(60 * q, 60 * k, v), 1e-4)


PARTS_STUB = '''
import torch
from torch.nn import functional as F


def rms_norm(x, weight, eps=1e-5):
    """x / sqrt(mean of x^2 over the last dimension + eps), times weight."""
    raise NotImplementedError


def swiglu(x, gate, up, down):
    """(silu(x gate^T) * (x up^T)) down^T; gate and up are (F, C), down is (C, F)."""
    raise NotImplementedError


def repeat_heads(x, heads):
    """Keys or values (B, K, T, D) for `heads` query heads: (B, heads, T, D); heads / K neighbours share one."""
    raise NotImplementedError


if __name__ == "__main__":
    print(rms_norm(torch.tensor([3.0, 4.0]), torch.ones(2)), "wanted 0.8485 and 1.1314")
    x = torch.arange(2.0).view(1, 2, 1, 1)
    print(repeat_heads(x, 4).flatten().tolist(), "wanted [0, 0, 1, 1]")
'''


def solve_parts() -> dict:
    """nn/norms.py, nn/feedforward.py."""
    import torch

    from lightning_gpt.nn import GPTConfig
    from lightning_gpt.nn.feedforward import GatedFeedForward
    from lightning_gpt.nn.norms import rms_norm

    def swiglu(x: Any, gate: Any, up: Any, down: Any) -> Any:
        config = GPTConfig(n_embd=x.shape[-1], n_head=1, bias=False)
        part = GatedFeedForward(config, len(gate), "swiglu")
        with torch.no_grad():
            part.gate_up.weight.copy_(torch.cat((gate, up)))
            part.down.weight.copy_(down)
        return part(x)

    return {
        "rms_norm": lambda x, weight, eps=1e-5: rms_norm(x, weight, eps),
        "swiglu": swiglu,
        "repeat_heads": lambda x, heads: x.repeat_interleave(heads // x.shape[1], dim=1),
    }


def check_parts(answer: Any) -> None:
    """LLaMA's three parts."""
    import torch

    ours = solve_parts()
    norm, feed, repeat = (function(answer, name) for name in ours)
    for shape in ((4,), (2, 3, 8), (1, 5, 16)):
        x, weight = 3 * torch.randn(shape) + 2, torch.randn(shape[-1])
        same(f"rms_norm of {shape}", norm(x, weight), ours["rms_norm"](x, weight), 1e-5)
        same("rms_norm of tiny numbers", norm(1e-4 * x, weight), ours["rms_norm"](1e-4 * x, weight), 1e-5)
    x, (gate, up), down = torch.randn(2, 3, 6), torch.randn(2, 10, 6), torch.randn(6, 10)
    same("swiglu", feed(x, gate, up, down), ours["swiglu"](x, gate, up, down), 1e-5)
    for K, heads in ((2, 6), (1, 4), (3, 3)):
        x = torch.randn(2, K, 4, 5)
        same(f"repeat_heads from {K} to {heads}", repeat(x, heads), ours["repeat_heads"](x, heads), 0)


EXERCISES = (
    Exercise(
        1,
        "Bytes of a cache",
        "measure",
        "Bytes of keys and values in bfloat16 of llama2-7b and mistral-7b, a token and at 4,096 tokens.",
        "llama2_7b_token:\nllama2_7b_4096:\nmistral_7b_token:\nmistral_7b_4096:",
        check_cache,
        ("2 (keys, values) x layers x key/value heads x head width x 2 bytes.", "Mistral has 8 key/value heads of 32."),
        "cache",
        lambda: (
            "llama2_7b_token: 524288\nllama2_7b_4096: 2147483648\nmistral_7b_token: 131072\n"
            "mistral_7b_4096: 536870912\n"
        ),
    ),
    Exercise(
        1,
        "How far ALiBi sees",
        "measure",
        "ALiBi with four heads: at which distance does each take 10 off its score? In the order of the heads.",
        "distances: []   # four numbers",
        check_alibi,
        ("The slopes are 2^(-8/4), 2^(-16/4), ...", "10 over the slope."),
        "alibi",
        lambda: "distances: [40, 160, 640, 2560]\n",
    ),
    Exercise(
        2,
        "One improvement, compared",
        "run",
        "The milestone: choose one improvement, write its experiment with an expectation, equal parameters and five "
        "seeds, and run it. Any verdict passes.",
        "experiment:   # folder with results.json",
        own_study,
        ("experiments/07_improvements has four to copy from.", "equal: {parameters: 0.01}; one setting a variant."),
        "improvement",
    ),
    Exercise(
        2,
        "Longer than trained",
        "run",
        "Validate a rotary run of block_size 64 at 64 and at 256 with each rope_scaling, of factor 4. Which loses "
        "least?",
        "run:\nloss_at_64:  {linear: , ntk: , yarn: }\nloss_at_256: {linear: , ntk: , yarn: "
        "}\nbest_at_64:\nbest_at_256:",
        check_longer,
        (
            "lightning-gpt validate -c RUN/version_0/config.yaml --ckpt_path RUN/version_0/checkpoints/last.ckpt "
            "--data.block_size 256 --model.config.rope_scaling '{kind: yarn, factor: 4, original_block_size: 64}'",
            "Write val/loss of each into the two tables; the best is the lowest of its row.",
        ),
        "longer",
    ),
    Exercise(
        3,
        "Rotary positions",
        "component",
        "Turn queries and keys, and their products know the distance. To 1e-6.",
        ROTATE_STUB,
        check_rotate,
        (
            "There are D / 2 frequencies, theta ** (-arange(0, D, 2) / D); angles are positions x frequencies.",
            "With halves a, b: (a cos - b sin, b cos + a sin).",
        ),
        "rotate",
        lambda: {"rotate": reference_rotate},
    ),
    Exercise(
        3,
        "Attention in blocks",
        "component",
        "The softmax of a row needs no whole row: a running maximum and a running sum are enough.",
        BLOCKED_STUB,
        check_blocked,
        (
            "State for each query: largest (-inf), total (0), weighted (0, with D numbers).",
            "new = max(largest, block's largest); both sums times exp(largest - new); then add exp(scores - new).",
            "Mask inside a block by comparing positions; the first key is always seen, so largest is finite after "
            "block 0.",
        ),
        "blocked",
        lambda: {"blocked_attention": solve_blocked},
    ),
    Exercise(
        2,
        "LLaMA's parts",
        "component",
        "RMSNorm, SwiGLU and shared key/value heads: three functions of a line or two.",
        PARTS_STUB,
        check_parts,
        (
            "No mean is taken off in RMSNorm; eps is inside the root.",
            "repeat_interleave, not repeat: neighbouring query heads share a key head.",
        ),
        "parts",
        solve_parts,
    ),
)
