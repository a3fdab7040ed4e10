"""Exercises of 09, inference."""

from __future__ import annotations

from typing import Any

from lightning_gpt.learning.chapter_05 import reference_attention
from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.judging import close, equal, function, number, same
from lightning_gpt.learning.runs import content


def check_bytes(answer: dict) -> None:
    """SmolLM2-135M: 30 layers, 3 heads of 64, keys and values."""
    numbers = 30 * 2 * 3 * 64
    close("float32", answer.get("float32"), 4 * numbers, 1e-9)
    close("int8", answer.get("int8"), numbers + 30 * 2 * 3 * 4, 1e-9)
    close("int4", answer.get("int4"), numbers / 2 + numbers / 32 * 4, 1e-9)


def check_drafts(answer: dict) -> None:
    """Shares of drafted tokens that were kept."""
    cold, warm = (number(key, answer.get(key)) for key in ("kept_at_0", "kept_at_1"))
    if not (0 <= warm <= 1 and 0 <= cold <= 1):
        raise Wrong("kept_at_0 and kept_at_1 are shares between 0 and 1")
    if not cold:
        raise Wrong("kept_at_0: no draft was kept: a longer text repeats itself more, and gives drafts more chances")
    if cold <= warm:
        raise Wrong("kept_at_0 should be the larger: a draft that chooses agrees more with a model that chooses")
    equal("same_text_at_0", answer.get("same_text_at_0"), True)


def check_limits(answer: dict) -> None:
    """Shares of the machine by batch."""
    speeds = {one["batch"]: one for one in content(answer, "bench", "bench.json").get("speeds", [])}
    missing = [batch for batch in (1, 4, 16) if batch not in speeds]
    if missing:
        raise Wrong(f"the bench has no batch of {missing[0]}: --batch 1,4,16")
    for key, of, batch in (
        ("bandwidth_at_1", "bandwidth_share", 1),
        ("flops_at_1", "flops_share", 1),
        ("flops_at_16", "flops_share", 16),
    ):
        close(key, answer.get(key), speeds[batch][of], 0.05, 0.005)
    limit = "bandwidth" if speeds[1]["bandwidth_share"] > speeds[1]["flops_share"] else "operations"
    equal("limit_at_1", answer.get("limit_at_1"), limit)


def check_calibration(answer: dict) -> None:
    """What of GPTQ's gain is left."""
    after = {}
    for key, method in (("own_text", "gptq"), ("foreign_text", "gptq"), ("rounded", "rtn")):
        found = content(answer, key, "quantization.json")
        if found.get("method") != method or not found.get("perplexity"):
            raise Wrong(f"{key}: this is {found.get('method')}; wanted is {method} with --evaluate")
        text = (found.get("calibration") or {}).get("text")
        if key == "foreign_text" and text != "builtin":
            raise Wrong(f"{key}: it was calibrated on {text}, not on builtin")
        after[key] = found["perplexity"]["after"]
    gain = after["rounded"] - after["own_text"]
    close("share_left", answer.get("share_left"), (after["rounded"] - after["foreign_text"]) / gain, 0.05, 0.02)


VERIFY_STUB = '''
import torch


def verify(p, q, draft, accept, draw):
    """Speculative sampling: which drafted tokens are kept, and the token that follows them.

    Drafted token x is kept while accept < p(x) / q(x), up to the first that is not. Behind the last kept one comes a
    token from max(p - q, 0), scaled to sum to 1, where a token was refused, and from the last row of p where none was.
    A token is drawn from probabilities as the first at which their running sum passes the uniform number.

    Args:
        p: (K + 1, V) float64, the network's probabilities before each drafted token and behind the last.
        q: (K, V) float64, the draft's.
        draft: (K,) int64, drawn from q.
        accept: (K,) uniform numbers.
        draw: (K + 1,) uniform numbers; the one at the place where a token is drawn is used.

    Returns:
        how many are kept, and the next token: two ints.
    """
    raise NotImplementedError


if __name__ == "__main__":
    p = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    q = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    print(verify(p, q, torch.tensor([0]), torch.tensor([0.4]), torch.tensor([0.9, 0.3])), "wanted 1, 2")
    print(verify(p, q, torch.tensor([0]), torch.tensor([0.6]), torch.tensor([0.9, 0.3])), "wanted 0, 1")
'''


def solve_verify(p: Any, q: Any, draft: Any, accept: Any, draw: Any) -> tuple[int, int]:
    """inference/speculation.py, for one request."""
    import torch

    from lightning_gpt.inference.speculation import speculate

    lengths = torch.tensor([len(draft)])
    kept, following = speculate(p[None], q[None], draft[None], lengths, accept[None], draw[None])
    return int(kept), int(following)


def check_verify(answer: Any) -> None:
    """Draw by draw, then the frequencies of the first token by a chi-square test."""
    import torch
    from scipy import stats

    mine = function(answer, "verify")
    V, K = 5, 3

    def row(count: int) -> Any:
        return torch.rand(count, V, dtype=torch.float64).pow(2).add(1e-3)

    for case in range(60):
        p, q = row(K + 1), row(K)
        p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
        draft = torch.multinomial(q, 1)[:, 0]
        uniforms = torch.rand(2 * K + 1, dtype=torch.float64)
        arguments = (p, q, draft, uniforms[:K], uniforms[K:])
        found = mine(*(one.clone() for one in arguments))
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Wrong("verify: two ints are wanted, how many are kept and the next token")
        kept, following = solve_verify(*arguments)
        if int(found[0]) != kept:
            raise Wrong(f"case {case}: {int(found[0])} drafted tokens are kept, which is not right")
        if int(found[1]) != following:
            place = "behind a refused token" if kept < K else "behind a draft that was kept whole"
            raise Wrong(f"case {case}: the token {place} is not right")
    p = torch.tensor([[0.6, 0.1, 0.3], [0.2, 0.5, 0.3]], dtype=torch.float64)
    q = torch.tensor([[0.2, 0.7, 0.1]], dtype=torch.float64)
    counts, times = [0, 0, 0], 3000
    for _ in range(times):
        draft = torch.multinomial(q, 1)[:, 0]
        kept, following = mine(p, q, draft, torch.rand(1).double(), torch.rand(2).double())
        counts[int(draft[0]) if int(kept) else int(following)] += 1
    if stats.chisquare(counts, [times * float(one) for one in p[0]]).pvalue < 1e-4:
        shown = ", ".join(f"{count / times:.3f}" for count in counts)
        raise Wrong(f"over {times} draws the first token's frequencies are {shown}: those are not the network's")


CACHE_STUB = '''
import torch


class CachedAttention:
    """Causal attention over a text that comes in pieces: earlier keys and values are kept, not computed again."""

    def __init__(self):
        raise NotImplementedError

    def __call__(self, q, k, v):
        """(B, H, T, D) each, of the new tokens alone -> (B, H, T, D): they see themselves and all that came before."""
        raise NotImplementedError


if __name__ == "__main__":
    q, k, v = torch.randn(3, 1, 2, 5, 4).unbind()
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    attend = CachedAttention()
    pieces = [attend(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b]) for a, b in ((0, 3), (3, 4), (4, 5))]
    print("largest difference", float((torch.cat(pieces, 2) - whole).abs().max()))
'''


class SolvedCache:
    """With nn/cache.py's KVCache of one layer."""

    def __init__(self) -> None:
        self.cache: Any = None
        self.length = 0

    def __call__(self, q: Any, k: Any, v: Any) -> Any:
        """The new tokens' outputs."""
        import torch

        from lightning_gpt.nn import GPTConfig, KVCache
        from lightning_gpt.nn.attention_paths import plain_attention

        B, H, T, D = q.shape
        if self.cache is None:
            config = GPTConfig(vocab_size=2, block_size=64, n_layer=1, n_head=H, n_embd=H * D)
            self.cache = KVCache(config, B)
        first, self.length = self.length, self.length + T
        self.cache.reserve(first, T)
        keys, values = self.cache.update(0, k, v, slice(first, self.length))
        mask = torch.full((T, self.length), -torch.inf).triu(first + 1)
        return plain_attention(q, keys, values, mask, D**-0.5, 0.0)


def check_cache(answer: Any) -> None:
    """Pieces of several sizes equal the whole; two texts do not mix."""
    import torch

    made = function(answer, "CachedAttention")
    for pieces in ((4,), (1, 1, 1, 1), (3, 1, 1), (2, 5, 1, 3)):
        T = sum(pieces)
        q, k, v = torch.randn(3, 2, 3, T, 8).unbind()
        wanted, attend, start = reference_attention(q, k, v), made(), 0
        for size in pieces:
            part = slice(start, start + size)
            given = attend(q[:, :, part].clone(), k[:, :, part].clone(), v[:, :, part].clone())
            same(f"tokens {start} to {start + size - 1} of pieces {pieces}", given, wanted[:, :, part])
            start += size


INT8_STUB = '''
import torch


def quantize(weight):
    """Symmetric whole numbers with a scale for each output channel (row).

    Args:
        weight: (N, K) float32.

    Returns:
        (N, K) int8 between -127 and 127, and (N,) float32 scales; a row of zeros is allowed.
    """
    raise NotImplementedError


def dequantize(whole, scale):
    """(N, K) float32 again."""
    raise NotImplementedError


if __name__ == "__main__":
    weight = torch.tensor([[1.0, -0.5, 0.1], [100.0, 3.0, -7.0]])
    print(dequantize(*quantize(weight)))
'''


def solve_int8() -> dict:
    """quantization/grid.py."""
    from lightning_gpt.quantization.grid import round_to_nearest

    def quantize(weight: Any) -> tuple:
        whole, scale = round_to_nearest(weight, 8)
        return whole.clamp(min=-127), scale[:, 0]  # ours may use -128 where its scale was rounded down

    return {"quantize": quantize, "dequantize": lambda whole, scale: whole.float() * scale[:, None]}


def check_int8(answer: Any) -> None:
    """Type, range, and an error of half a step of each row's own scale."""
    import torch

    quantize, dequantize = function(answer, "quantize"), function(answer, "dequantize")
    for N, K in ((1, 4), (6, 32), (3, 200)):
        weight = torch.randn(N, K) * torch.logspace(-3, 2, N)[:, None]
        if N > 2:
            weight[1] = 0
        found = quantize(weight.clone())
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Wrong("quantize: two tensors are wanted, whole numbers and scales")
        whole, scale = found
        if whole.dtype != torch.int8 or whole.shape != weight.shape or tuple(scale.shape) != (N,):
            raise Wrong(f"quantize of {N} x {K}: {whole.dtype} {tuple(whole.shape)} and scales {tuple(scale.shape)}")
        if whole.min() < -127:
            raise Wrong("-128 occurs: the range is symmetric, -127 to 127")
        back = dequantize(whole, scale)
        same("dequantize", back, whole.float() * scale[:, None], 1e-6)
        largest = weight.abs().amax(1)
        fits = (127 * scale / largest.clamp(min=1e-30) - 1).abs() < 0.01
        if not (fits | (largest == 0)).all():
            row = int((fits | (largest == 0)).int().argmin())
            raise Wrong(f"row {row}: a scale of {scale[row]:.3g} does not fit its largest weight, {largest[row]:.3g}")
        if not torch.isfinite(back).all():
            raise Wrong("a row of zeros becomes NaN")
        beyond = (weight.abs() - 127 * scale[:, None]).clamp(min=0)
        off = (back - weight).abs() - beyond - 0.501 * scale[:, None]
        if (off > 1e-9).any():
            raise Wrong("numbers are off by more than half a step of their scale: round to the nearest")


EXERCISES = (
    Exercise(
        1,
        "Count before you measure",
        "measure",
        "SmolLM2-135M has 30 layers and 3 key/value heads of 64. Bytes of keys and values a token in float32, in int8 "
        "with a float32 scale a head, in int4 with a float32 scale for every 32 numbers.",
        "float32:\nint8:\nint4:",
        check_bytes,
        ("30 x 2 x 3 x 64 numbers.", "Scales: 30 x 2 x 3 of them in int8; two for each head in int4."),
        "bytes",
        lambda: "float32: 46080\nint8: 12240\nint4: 7200\n",
    ),
    Exercise(
        1,
        "Draft or not",
        "measure",
        "`lightning-gpt generate` with --draft ngram --stats true at temperatures 0 and 1: which share of drafted "
        "tokens was kept (0 where it drafted none: drafts that do not pay are not made)? Is the text at 0 the same "
        "without a draft (true or false)?",
        "kept_at_0:\nkept_at_1:\nsame_text_at_0:",
        check_drafts,
        ("--stats true prints kept and drafted tokens.", "Kept over drafted."),
        "drafts",
        lambda: "kept_at_0: 0.4\nkept_at_1: 0.2\nsame_text_at_0: true\n",
    ),
    Exercise(
        2,
        "How far from the limit",
        "run",
        "`lightning-gpt bench smollm2-135m --batch 1,4,16 --out DIR`: shares of the machine, and which of the two "
        "is the "
        "limit at batch 1 (bandwidth or operations)?",
        "bench:            # folder with bench.json\nbandwidth_at_1:\nflops_at_1:\nflops_at_16:\nlimit_at_1:",
        check_limits,
        ("The shares are in bench.json: bandwidth_share and flops_share.", "The larger share is the nearer limit."),
        "limits",
    ),
    Exercise(
        2,
        "Calibrated on the wrong text",
        "run",
        "GPTQ to 4 bits with its own text and with --calibration builtin, and rounding to nearest, each with "
        "--evaluate: which share of GPTQ's gain in perplexity over rounding is left with the foreign text?",
        "own_text:       # model directory\nforeign_text:   # model directory\nrounded:        # model directory\n"
        "share_left:",
        check_calibration,
        ("quantization.json of each has the perplexity after.", "(rounded - foreign) / (rounded - own)."),
        "calibration",
    ),
    Exercise(
        3,
        "The verifier",
        "component",
        "The rule that makes speculative sampling exact: whatever the draft is, the text is the network's.",
        VERIFY_STUB,
        check_verify,
        (
            "Go through the draft in order; stop at the first token that is refused.",
            "At the refused place draw from (p - q).clamp(min=0), divided by its sum, with draw[kept].",
            "torch.searchsorted(probabilities.cumsum(0), u, right=True) is the first whose running sum passes u.",
        ),
        "verify",
        lambda: {"verify": solve_verify},
    ),
    Exercise(
        3,
        "Keys and values kept",
        "component",
        "A cache makes generation linear, and must not change a single output.",
        CACHE_STUB,
        check_cache,
        (
            "torch.cat old and new keys along dimension 2; the same for values.",
            "New token i of T sees all but the last T - 1 - i keys: the mask is triu(S - T + 1).",
        ),
        "cache",
        lambda: {"CachedAttention": SolvedCache},
    ),
    Exercise(
        2,
        "Eight bits a weight",
        "component",
        "One scale for a whole matrix lets its largest row spoil the others. Write one for each row.",
        INT8_STUB,
        check_int8,
        ("scale = largest magnitude of the row / 127.", "A row of zeros would divide by 0: any scale does for it."),
        "int8",
        solve_int8,
    ),
)
