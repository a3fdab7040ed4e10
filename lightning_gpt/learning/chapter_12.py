"""Exercises of 12, mixture of experts."""

from __future__ import annotations

from typing import Any

from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.judging import close, equal, function, same
from lightning_gpt.learning.runs import last, lowest, opened, steps


def check_active(answer: dict) -> None:
    """What a token meets."""
    from lightning_gpt.nn.flops import parameters
    from lightning_gpt.nn.presets import PRESETS

    for name in ("mixtral-8x7b", "glam-64b-64e"):
        key, config = name.split("-")[0], PRESETS[name]
        active, total = parameters(config, active=True), parameters(config)
        close(f"{key}_active", answer.get(f"{key}_active"), active, 0.005)
        close(f"{key}_share", answer.get(f"{key}_share"), active / total, 0.01)


def check_even(answer: dict) -> str:
    """Loads within 10% of their mean, in 300 steps."""
    run = opened(answer)
    if steps(run) > 300:
        raise Wrong(f"{run.directory} has {steps(run)} steps; 300 are allowed")
    found = lowest(run, "experts/max_violation")
    if found >= 0.1:
        raise Wrong(f"experts/max_violation came down to {found:.3f}: not below 0.1")
    return f"{found:.3f}"


def check_dropped(answer: dict) -> None:
    """By capacity."""
    close("even_at_half", answer.get("even_at_half"), 0.5, 0.01)
    close("uneven_at_1", answer.get("uneven_at_1"), 0.30, 0.01)
    close("uneven_at_2", answer.get("uneven_at_2"), 0.0, 0, 0.01)


def check_upcycled(answer: dict) -> str:
    """The dense run, and what grew from it."""
    dense, grown = opened(answer, "dense"), opened(answer, "upcycled")
    if any(key.startswith("model.config.moe.") for key in dense.settings):
        raise Wrong(f"{dense.directory} has experts already: --model.init_args.config.moe null")
    if not grown.settings.get("model.init_from"):
        raise Wrong(f"{grown.directory} did not begin from an upcycled model: --model.init_args.init_from")
    before, after = last(dense, "val/loss"), last(grown, "val/loss")
    if after >= before:
        raise Wrong(f"the upcycled run ends at {after:.4f}, the dense one at {before:.4f}: train on")
    equal("first_loss_is_the_dense_one_because", answer.get("first_loss_is_the_dense_one_because"), "equal experts")
    return f"{before:.4f} -> {after:.4f}"


BALANCE_STUB = '''
import torch


def balance_loss(scores, chosen):
    """Switch's balance loss (Fedus et al., 2021, eq. 4): E times the sum over experts of f_e P_e.

    f_e is the share of all choices that fell on expert e; P_e is the mean score of e. 1 when both are even.

    Args:
        scores: (N, E), each row sums to 1.
        chosen: (N, K) int64, the experts of each token.

    Returns:
        a scalar; its gradient goes through P alone.
    """
    raise NotImplementedError


if __name__ == "__main__":
    even = torch.full((4, 4), 0.25)
    print(float(balance_loss(even, torch.arange(4)[:, None])), "wanted 1")
'''


def _router(experts: int, top_k: int, width: int = 8, **settings: Any) -> Any:
    from lightning_gpt.nn.moe_config import MoEConfig
    from lightning_gpt.nn.router import Router

    return Router(width, MoEConfig(experts=experts, top_k=top_k, **settings))


def solve_balance(scores: Any, chosen: Any) -> Any:
    """nn/router.py."""
    return _router(scores.shape[1], chosen.shape[1])._balance_loss(scores, chosen.flatten())


def check_balance(answer: Any) -> None:
    """Random loads, all on the same, and the gradient."""
    import torch

    mine = function(answer, "balance_loss")
    for N, E, K in ((12, 4, 1), (40, 8, 2), (6, 3, 3)):
        logits = torch.randn(N, E, requires_grad=True)
        scores = logits.softmax(-1)
        chosen = scores.topk(K, dim=-1).indices
        for what, which in (("", chosen), (", all on the same experts", chosen[:1].expand(N, K))):
            where = f"N={N}, E={E}, K={K}{what}"
            given, wanted = mine(scores, which), solve_balance(scores, which)
            same(f"balance_loss, {where}", given, wanted, 1e-5)
            if not given.requires_grad:
                raise Wrong(f"{where}: no gradient reaches the scores")
            grads = [torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (given, wanted)]
            same(f"the gradient, {where}", *grads, 1e-5)


MIXTURE_STUB = '''
import torch
from torch.nn import functional as F


def mixture(x, router, up, down, top_k):
    """A mixture of experts, by a loop over experts.

    Scores are softmax(x router^T) over all experts; the top_k largest of a token, divided by their sum, weigh its
    experts' outputs relu(x up_e^T) down_e^T.

    Args:
        x: (N, C).
        router: (E, C).
        up: (E, F, C); down: (E, C, F).

    Returns:
        (N, C).
    """
    raise NotImplementedError


if __name__ == "__main__":
    x = torch.randn(5, 4)
    up, down = torch.randn(1, 6, 4), torch.randn(1, 4, 6)
    alone = F.relu(x @ up[0].T) @ down[0].T
    print(float((mixture(x, torch.randn(1, 4), up, down, 1) - alone).abs().max()), "with one expert: wanted 0")
'''


def solve_mixture(x: Any, router: Any, up: Any, down: Any, top_k: int) -> Any:
    """nn/moe.py with these weights."""
    import torch

    from lightning_gpt.nn import GPTConfig
    from lightning_gpt.nn.moe import MixtureOfExperts
    from lightning_gpt.nn.moe_config import MoEConfig

    moe = MoEConfig(experts=len(up), top_k=top_k, renormalize=True, expert_hidden=up.shape[1])
    layer = MixtureOfExperts(GPTConfig(n_embd=x.shape[1], n_head=1, feed_forward="relu", bias=False, moe=moe))
    with torch.no_grad():
        layer.router.linear.weight.copy_(router)
        layer.experts.up.copy_(up)
        layer.experts.down.copy_(down)
        return layer(x[None])[0]


def check_mixture(answer: Any) -> None:
    """Several shapes; one expert that nobody takes."""
    import torch

    mine = function(answer, "mixture")
    for N, E, K in ((6, 4, 2), (1, 8, 2), (20, 3, 3), (9, 5, 1)):
        x, router = torch.randn(N, 8), torch.randn(E, 8)
        if K == 1:  # with one expert renormalised gates are 1; make one expert idle
            router[2], x = -5.0, x.abs()
        up, down = torch.randn(E, 16, 8) / 3, torch.randn(E, 8, 16) / 4
        given = mine(x.clone(), router, up, down, K)
        idle = " (an expert is idle)" if K == 1 else ""
        same(f"mixture, N={N}, E={E}, K={K}{idle}", given, solve_mixture(x, router, up, down, K))


TOPK_STUB = '''
import torch


def route(logits, top_k, capacity):
    """Who goes to which expert, and who finds no room.

    Gates are the softmax over all experts, not divided again. Places are given out in order: every token's first
    choice, from token 0 on, then every token's second choice, and so on; an expert takes `capacity` tokens.

    Args:
        logits: (N, E).

    Returns:
        chosen (N, top_k) int64, the best expert first; gates (N, top_k), 0 where there was no room.
    """
    raise NotImplementedError


if __name__ == "__main__":
    logits = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    print(route(logits, 1, 1), "the second token finds no room")
'''


def solve_route(logits: Any, top_k: int, capacity: int) -> tuple:
    """nn/router.py, whose capacity is a factor."""
    import torch

    N, E = logits.shape
    factor = (capacity - 1e-6) * E / (N * top_k)
    router = _router(E, top_k, E, renormalize=False, capacity_factor=factor)
    with torch.no_grad():
        router.linear.weight.copy_(torch.eye(E))
        route = router(logits)
    return route.expert_M.view(N, top_k), route.gate_M.view(N, top_k)


def check_route(answer: Any) -> None:
    """Choices, gates, room."""
    import torch

    mine = function(answer, "route")
    for N, E, K, capacity in ((3, 2, 1, 1), (16, 4, 2, 20), (16, 4, 2, 6), (30, 5, 3, 10)):
        logits = torch.randn(N, E)
        found = mine(logits.clone(), K, capacity)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Wrong("route: two tensors are wanted, chosen and gates")
        chosen, gates = solve_route(logits, K, capacity)
        where = f"N={N}, E={E}, top_k={K}, capacity={capacity}"
        same(f"chosen, {where}", found[0], chosen, 0)
        same(f"gates, {where}", found[1], gates, 1e-5)


EXERCISES = (
    Exercise(
        1,
        "What a token meets",
        "measure",
        "`lightning-gpt plan model` of mixtral-8x7b and glam-64b-64e: active parameters, and their share of all.",
        "mixtral_active:\nmixtral_share:\nglam_active:\nglam_share:",
        check_active,
        ("The table has a line of active parameters.", "Active over parameters."),
        "active",
        lambda: _active(),
    ),
    Exercise(
        1,
        "Even loads",
        "run",
        "Bring experts/max_violation below 0.1 within 300 steps, by any setting of moe.",
        "run:",
        check_even,
        ("balance: bias moves the choice without a loss.", "bias_rate: 0.01 is ten times the default."),
        "even",
    ),
    Exercise(
        2,
        "Dropped for want of room",
        "measure",
        "Which share of pairs is dropped with even loads at a capacity factor of 0.5? And with loads of 50%, 30%, 15% "
        "and 5% on four experts at 1 and at 2?",
        "even_at_half:\nuneven_at_1:\nuneven_at_2:",
        check_dropped,
        ("At a factor of 1 each of four experts has room for 25%.", "Sum what is beyond the room of each."),
        "dropped",
        lambda: "even_at_half: 0.5\nuneven_at_1: 0.30\nuneven_at_2: 0.0\n",
    ),
    Exercise(
        2,
        "Upcycling",
        "run",
        "Train dense, upcycle, train on. Before further training the loss is the dense one's: because of random "
        "routers, equal experts, or small gates?",
        "dense:                                 # run\nupcycled:                              # run\n"
        "first_loss_is_the_dense_one_because:   # random routers, equal experts or small gates",
        check_upcycled,
        ("All experts are copies of one feed-forward.", "Gates of a token sum to 1."),
        "upcycled",
    ),
    Exercise(
        3,
        "The balance loss",
        "component",
        "1 for even loads; E / K when the same K experts take all.",
        BALANCE_STUB,
        check_balance,
        (
            "f from torch.bincount(chosen.flatten(), minlength=E), over its sum.",
            "P = scores.mean(0); E * (f * P).sum(). Counting has no gradient, which is as it should be.",
        ),
        "balance",
        lambda: {"balance_loss": solve_balance},
    ),
    Exercise(
        3,
        "The mixture layer",
        "component",
        "Write it with a loop over experts: slow, and right also where an expert gets no token.",
        MIXTURE_STUB,
        check_mixture,
        (
            "gates, chosen = softmax.topk(top_k); gates / gates.sum(-1, keepdim=True).",
            "For expert e: token, place = (chosen == e).nonzero(as_tuple=True).",
            "y.index_add_(0, token, gates[token, place, None] * expert(x[token])).",
        ),
        "mixture",
        lambda: {"mixture": solve_mixture},
    ),
    Exercise(
        2,
        "Top-k with capacity",
        "component",
        "Who comes first finds room: all first choices before any second.",
        TOPK_STUB,
        check_route,
        (
            "Go through chosen.T.flatten(): that is the order in which places are given out.",
            "one_hot(...).cumsum(0) numbers the tokens of each expert.",
        ),
        "route",
        lambda: {"route": solve_route},
    ),
)


def _active() -> str:
    from lightning_gpt.nn.flops import parameters
    from lightning_gpt.nn.presets import PRESETS

    lines = []
    for name in ("mixtral-8x7b", "glam-64b-64e"):
        active, total = parameters(PRESETS[name], active=True), parameters(PRESETS[name])
        lines += [f"{name.split('-')[0]}_active: {active}", f"{name.split('-')[0]}_share: {active / total}"]
    return "\n".join(lines)
