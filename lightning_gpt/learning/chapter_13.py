"""Exercises of 13, alignment."""

from __future__ import annotations

from typing import Any

from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.judging import close, equal, function, number, same
from lightning_gpt.learning.runs import Study, at_least, content, has, last, opened, same_but


def check_betas(answer: dict) -> None:
    """DPO with beta 1 and 0.05."""
    tight, loose = opened(answer, "beta_1"), opened(answer, "beta_005")
    has(tight, model__loss__beta=1)
    has(loose, model__loss__beta=0.05)
    equal("goes_further", answer.get("goes_further"), "beta_005")
    for key, run in (("margin_1", tight), ("margin_005", loose)):
        close(key, answer.get(key), last(run, "rewards/margins"), 0.05, 0.01)


def check_hacking(answer: dict) -> str:
    """A run that leaves the language, and one that is held."""
    hacked, held = opened(answer, "hacked", finished=False), opened(answer, "held")
    if last(hacked, "objective/kl") < 10:
        raise Wrong(f"hacked: objective/kl is {last(hacked, 'objective/kl'):.1f} nats: it has not gone far yet")
    same_but(hacked, held, "model.kl", "trainer", "data.val_limit")
    if last(held, "objective/kl") >= 10:
        raise Wrong(f"held: objective/kl is {last(held, 'objective/kl'):.1f} nats, asked for is below 10")
    far = hacked.series["objective/kl"]
    at_least(held, int(far.steps[far.values >= 10][0]))  # where the other was beyond it
    return f"{last(hacked, 'objective/kl'):.1f} -> {last(held, 'objective/kl'):.1f} nats"


def check_arena(answer: dict) -> None:
    """DPO's win rate over SFT's."""
    pairs = content(answer, "arena", "arena.json").get("pairs") or []
    if not pairs:
        raise Wrong("this file has no pairs of models: lightning-gpt arena A B --out FILE")
    pair = pairs[0]
    swapped = "dpo" not in str(pair["first"]).lower()
    if swapped and "dpo" not in str(pair["second"]).lower():
        raise Wrong(f"neither {pair['first']} nor {pair['second']} has dpo in its name")
    for key, name in (("win_rate", "win_rate"), ("length_controlled", "length_controlled")):
        value, low, high = _interval(pair[name])
        if swapped:
            value, low, high = 1 - value, 1 - high, 1 - low
        close(key, answer.get(key), value, 0.02, 0.005)
        if key == "win_rate" and low <= 0.5:
            raise Wrong(f"DPO's interval is {low:.3f} to {high:.3f}: not above one half")


def _interval(found: Any) -> tuple[float, float, float]:
    """(value, low, high), however they are written."""
    if isinstance(found, dict):
        numbers = list(found.values())
        return tuple(float(one) for one in numbers[:3])
    return tuple(float(one) for one in found[:3])


def check_pairs(answer: dict) -> str:
    """4,096 pairs, foretold."""
    study = Study(answer)
    name = next((name for name in study.values if "4096" in name.replace(",", "")), None)
    if name is None:
        raise Wrong(f"no variant has 4096 in its name: {', '.join(study.values)}")
    study.needs(4, 3)
    said = number("said", answer.get("said"))
    mean = sum(study.values[name].values()) / len(study.values[name])
    if abs(said - mean) > 0.05:
        raise Wrong(f"said: {said:.3g} is {abs(said - mean):.3f} away from what the variant reached")
    return f"{study.metric} {mean:.3f}"


DPO_STUB = '''
import torch
from torch.nn import functional as F


def dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta):
    """Rafailov et al. (2023), equation 7: -log sigmoid(beta h) for each pair, h being by how much more than the
    reference the policy prefers the chosen answer.

    Args:
        chosen, rejected: (B,) log-probabilities of the answers under the policy.
        reference_chosen, reference_rejected: (B,) under the reference.

    Returns:
        (B,).
    """
    raise NotImplementedError


if __name__ == "__main__":
    one = torch.tensor([-5.0])
    print(dpo_loss(one, one, one, one, 0.1), "wanted ln 2 = 0.6931")
'''


def solve_dpo(chosen: Any, rejected: Any, reference_chosen: Any, reference_rejected: Any, beta: float) -> Any:
    """objectives/preference.py."""
    from lightning_gpt.objectives.preference import PairLogProbs, Sigmoid

    return Sigmoid(beta)(PairLogProbs(chosen, rejected, reference_chosen, reference_rejected))


def check_dpo(answer: Any) -> None:
    """Values, gradients, and h of a thousand."""
    import torch

    mine = function(answer, "dpo_loss")
    for B, beta, scale in ((1, 0.1, 5.0), (8, 0.5, 20.0), (4, 1.0, 500.0)):
        parts = [(-scale * torch.rand(B)).requires_grad_() for _ in range(4)]
        where = f"B={B}, beta={beta:g}" + (", h of hundreds" if scale > 100 else "")
        given, wanted = mine(*parts, beta), solve_dpo(*parts, beta)
        same(f"dpo_loss, {where}", given, wanted, 2e-6)
        if not given.requires_grad:
            raise Wrong(f"{where}: no gradient reaches the policy")
        grads = [torch.autograd.grad(one.sum(), parts[0])[0] for one in (given, wanted)]
        same(f"the gradient, {where}", *grads, 1e-6)
    zero = torch.zeros(2)
    far = torch.tensor([1000.0, -1000.0])
    same("dpo_loss at h = 1000 and -1000", mine(far, zero, zero, zero, 1.0), solve_dpo(far, zero, zero, zero, 1.0))


GAE_STUB = '''
import torch


def gae(rewards, values, mask, gamma, lam):
    """Generalized advantages (Schulman et al., 2016): A_t = sum over k of (gamma lam)^k d_{t+k}, where
    d_t = r_t + gamma V_{t+1} - V_t, and V behind the end of an answer is 0.

    Args:
        rewards, values: (B, T); what stands outside the mask is rubbish.
        mask: (B, T) bool, tokens of the answers; those of a row stand together, from its beginning.

    Returns:
        (B, T), 0 outside the mask.
    """
    raise NotImplementedError


if __name__ == "__main__":
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.5, 0.5]])
    print(gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 1.0, 1.0), "wanted 0.5, 0.5, 0.5")
'''


def solve_gae(rewards: Any, values: Any, mask: Any, gamma: float, lam: float) -> Any:
    """objectives/advantages.py."""
    from lightning_gpt.objectives.advantages import generalized_advantages

    return generalized_advantages(rewards, values, mask, gamma, lam)[0]


def check_gae(answer: Any) -> None:
    """Answers of different lengths with rubbish behind them."""
    import torch

    mine = function(answer, "gae")
    for B, T, gamma, lam in ((1, 5, 1.0, 1.0), (3, 7, 1.0, 0.95), (4, 6, 0.9, 0.5), (2, 4, 0.99, 0.0)):
        rewards, values = torch.randn(2, B, T).unbind()
        lengths = torch.randint(1, T + 1, (B,))
        mask = torch.arange(T) < lengths[:, None]
        rewards[~mask], values[~mask] = 1e3, -1e3
        given = mine(rewards.clone(), values.clone(), mask.clone(), gamma, lam)
        wanted = solve_gae(rewards, values, mask, gamma, lam)
        if getattr(given, "shape", None) == mask.shape and (given[~mask] != 0).any():
            raise Wrong("advantages behind an answer's end are not 0")
        same(f"gae, B={B}, T={T}, gamma={gamma:g}, lambda={lam:g}, answers of {lengths.tolist()}", given, wanted)


REWARD_STUB = '''
import torch
from torch.nn import functional as F


def reward_loss(chosen, rejected, centering):
    """Bradley and Terry's -log sigmoid(chosen - rejected) of each pair, plus centering * (chosen + rejected)^2, which
    keeps rewards about zero.

    Args:
        chosen, rejected: (B,) rewards.

    Returns:
        (B,).
    """
    raise NotImplementedError


def group_advantages(scores):
    """GRPO's: an answer's score less the mean of its prompt's answers, over their standard deviation (n - 1 below)
    plus 1e-4.

    Args:
        scores: (N, G), G answers to each of N prompts.

    Returns:
        (N, G).
    """
    raise NotImplementedError


if __name__ == "__main__":
    print(reward_loss(torch.tensor([1.0]), torch.tensor([1.0]), 0.0), "wanted 0.6931")
    print(group_advantages(torch.tensor([[0.0, 1.0]])), "wanted about -0.707 and 0.707")
'''


def solve_reward() -> dict:
    """Of objectives/."""
    from lightning_gpt.objectives.advantages import group_advantages
    from lightning_gpt.objectives.reward import pairwise_loss

    return {
        "reward_loss": lambda chosen, rejected, centering: pairwise_loss(chosen, rejected, centering=centering),
        "group_advantages": group_advantages,
    }


def check_reward(answer: Any) -> None:
    """Far rewards stay finite; prompts whose answers score alike give nothing."""
    import torch

    ours = solve_reward()
    loss, groups = function(answer, "reward_loss"), function(answer, "group_advantages")
    for B, centering, scale in ((3, 0.0, 1.0), (5, 0.01, 3.0), (4, 0.0, 300.0)):
        chosen, rejected = scale * torch.randn(2, B)
        wanted = ours["reward_loss"](chosen, rejected, centering)
        where = f"rewards of about {scale:g}, centering {centering:g}"
        same(f"reward_loss, {where}", loss(chosen.clone(), rejected.clone(), centering), wanted)
    for N, G in ((1, 2), (3, 8)):
        scores = torch.randn(N, G)
        scores[-1] = 2.0
        for what in (scores, torch.rand(N, G).round()):
            same(f"group_advantages, N={N}, G={G}", groups(what.clone()), ours["group_advantages"](what), 1e-4)


EXERCISES = (
    Exercise(
        1,
        "A short lead, a long lead",
        "run",
        "Train DPO with --model.loss.init_args.beta 1 and 0.05. Which policy goes further from its reference "
        "(beta_1 or "
        "beta_005), and what are the last rewards/margins?",
        "beta_1:         # run\nbeta_005:       # run\ngoes_further:\nmargin_1:\nmargin_005:",
        check_betas,
        ("beta is the price of a nat of distance.", "rewards/margins is logged in training; the last line counts."),
        "betas",
    ),
    Exercise(
        1,
        "Reward hacking",
        "run",
        "Provoke it (objective/kl above 10 nats), then hold it below 10 with the smallest --model.kl.beta that does, "
        "all else being the same.",
        "hacked:   # run\nheld:     # run",
        check_hacking,
        ("A beta of 0 lets the policy go where it likes.", "Double beta until objective/kl ends below 10."),
        "hacking",
    ),
    Exercise(
        2,
        "SFT meets DPO",
        "run",
        "`lightning-gpt arena` of both: DPO's win rate, and that with lengths held equal.",
        "arena:               # the JSON file of --out\nwin_rate:\nlength_controlled:",
        check_arena,
        ("Both stand in the printed table and in pairs of the file.", "Give DPO's side of it, whoever came first."),
        "arena",
    ),
    Exercise(
        2,
        "4,096 pairs",
        "run",
        "Add a variant pairs-4096 to a copy of reward_data_size.yaml. Say beforehand what val/accuracy it will reach: "
        "within 0.05.",
        "experiment:   # folder with results.json\nsaid:         # written before the run",
        check_pairs,
        ("It lies between its neighbours.", "data.init_args.limit: 4096."),
        "pairs",
    ),
    Exercise(
        3,
        "DPO",
        "component",
        "Four log-probabilities in, a loss out; finite at h of a thousand.",
        DPO_STUB,
        check_dpo,
        (
            "h = (chosen - rejected) - (reference_chosen - reference_rejected).",
            "log(sigmoid(x)) is -inf from about -100 on; F.logsigmoid is not.",
        ),
        "dpo",
        lambda: {"dpo_loss": solve_dpo},
    ),
    Exercise(
        3,
        "Advantages",
        "component",
        "From the end of an answer to its beginning; nothing leaks in from behind it.",
        GAE_STUB,
        check_gae,
        (
            "Put 0 into rewards and values outside the mask before anything else.",
            "A_t = d_t + gamma lam A_{t+1}, in a loop from T - 1 down to 0.",
        ),
        "gae",
        lambda: {"gae": solve_gae},
    ),
    Exercise(
        2,
        "Rewards from pairs, advantages from groups",
        "component",
        "The two other small formulas of this chapter.",
        REWARD_STUB,
        check_reward,
        ("F.logsigmoid, as in DPO.", "mean and std over the last dimension, with keepdim=True."),
        "reward",
        solve_reward,
    ),
)
