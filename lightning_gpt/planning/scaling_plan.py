"""A budget or a size made into a plan: parameters, tokens, a network, its loss, and what it takes on which machine."""

import math
from dataclasses import dataclass, field

import numpy as np

from lightning_gpt.nn import GPTConfig
from lightning_gpt.nn.flops import body_parameters, parameters, training_flops_per_token
from lightning_gpt.planning import kaplan
from lightning_gpt.planning.accelerators import ACCELERATORS, PRICES_OF, Machine
from lightning_gpt.planning.kaplan import KAPLAN
from lightning_gpt.planning.laws import (
    APPROACH_1,
    APPROACH_2,
    APPROACH_3,
    BESIROGLU,
    HOFFMANN,
    HOFFMANN_ROUNDED,
    PARAMETRIC,
    Allocation,
    ParametricLaw,
)
from lightning_gpt.planning.published import judge, lost_range, short
from lightning_gpt.planning.shapes import Style, count_parameters, find_shape

LAWS: dict[str, ParametricLaw | Allocation] = {
    law.name: law for law in (BESIROGLU, HOFFMANN, HOFFMANN_ROUNDED, APPROACH_1, APPROACH_2, APPROACH_3, KAPLAN)
}
STATE_BYTES = 16
"""Of one parameter while training in mixed precision with AdamW: 4 weight, 4 gradient, 8 moments (Rajbhandari et al.,
2020, section 3.1, count the same 16 with a half-precision copy)."""


@dataclass(frozen=True)
class Budget:
    """What the plan starts from: FLOPs, or parameters, or tokens, or both of these."""

    flops: float | None = None
    parameters: float | None = None
    tokens: float | None = None
    words: str = ""
    """Where the FLOPs come from."""

    def __post_init__(self) -> None:
        given = [name for name in ("flops", "parameters", "tokens") if getattr(self, name) is not None]
        if given not in (["flops"], ["parameters"], ["tokens"], ["parameters", "tokens"]):
            raise ValueError(
                "give exactly one of --flops, --gpus with --days, --params, --tokens "
                f"(--params and --tokens together judge that pair); got {', '.join(given) or 'none'}"
            )
        for name in given:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name.replace('parameters', 'params')}={value:g} must be positive")


@dataclass(frozen=True)
class ScalingPlan:
    """Everything that is printed; sizes as `law` counts them."""

    budget: Budget
    law: ParametricLaw | Allocation
    parameters: float
    """N that the law asks for, or the given one."""
    tokens: float
    """D by the law's own count of FLOPs, or the given ones."""
    network: GPTConfig
    style: Style
    trained_tokens: float
    """D of the network: what the budget pays for by the analytic count, or `tokens` where there is no budget."""
    training_flops: float
    """Of the network on them, analytic."""
    samples: list[ParametricLaw] = field(default_factory=list)
    """Resampled fits of an own law, for its interval."""

    @property
    def loss_law(self) -> ParametricLaw:
        """The law that tells the loss: an allocation has none, and is helped out by the default."""
        return self.law if isinstance(self.law, ParametricLaw) else BESIROGLU

    def loss(self) -> tuple[float, float, float, str]:
        """(predicted, low, high, what the interval is) of the network."""
        size = count_parameters(self.network, self.loss_law.counts)
        predicted = self.loss_law.loss(size, self.trained_tokens)
        if self.samples:
            low, high = np.percentile([one.loss(size, self.trained_tokens) for one in self.samples], (2.5, 97.5))
            return (
                predicted,
                low,
                high,
                "95% of the resampled fits; it knows nothing of how a law bends beyond its runs",
            )
        losses = [law.loss(size, self.trained_tokens) for law in PARAMETRIC]
        return predicted, min(losses), max(losses), "least and most of the three published fits of Hoffmann's runs"


def make_plan(
    budget: Budget,
    law: ParametricLaw | Allocation = BESIROGLU,
    style: Style = "llama",
    vocab: int | None = None,
    context: int | None = None,
    samples: list[ParametricLaw] | None = None,
) -> ScalingPlan:
    """The plan for a budget.

    Args:
        budget: see Budget.
        law: what the best split and the loss come from.
        style: proportions and parts of the network.
        vocab: ids; None = by size.
        context: tokens of a window; None = by size.
        samples: see ScalingPlan.

    Raises:
        ValueError: no network of such a size.
    """
    if budget.flops is not None:
        size, tokens = law.optimum(budget.flops)
    elif budget.parameters is not None:
        size = budget.parameters
        tokens = budget.tokens if budget.tokens is not None else law.optimal_tokens(size)
    else:
        tokens = budget.tokens
        size = law.optimal_parameters(tokens)
    network = find_shape(size, style, vocab, context, law.counts)
    per_token = training_flops_per_token(network, network.block_size)
    trained = budget.flops / per_token if budget.flops is not None else tokens
    return ScalingPlan(budget, law, size, tokens, network, style, trained, trained * per_token, samples or [])


def plan_text(plan: ScalingPlan, machine: Machine | None = None, utilisation: float = 0.4) -> str:
    """What `lightning-gpt plan scaling` prints.

    Args:
        plan: from make_plan.
        machine: the one that was named; None = the whole table.
        utilisation: of the table's.
    """
    budget, law, network = plan.budget, plan.law, plan.network
    both = budget.parameters is not None and budget.tokens is not None
    counted = "parameters" if law.counts == "all" else "parameters without embeddings"
    rows = [("law", f"{law.name} ({law.source}): N_opt ~ C^{law.a:.3f}, D_opt ~ C^{law.b:.3f}")]
    if budget.flops is not None:
        rows.insert(0, ("budget", f"{budget.flops:.3g} FLOPs" + (f" = {budget.words}" if budget.words else "")))
    rows += [
        ("given size" if both or budget.parameters else "best size", f"{short(plan.parameters)} {counted}"),
        (
            "given tokens" if both or budget.tokens else "best tokens",
            f"{short(plan.tokens)}, {plan.tokens / plan.parameters:.3g} a parameter, "
            f"{law.cost.flops(plan.parameters, plan.tokens):.3g} FLOPs as {cost_words(law)}",
        ),
    ]
    total = parameters(network)
    off = count_parameters(network, law.counts) / plan.parameters - 1
    heads = f"{network.n_head} heads of {network.head_size}"
    rows += [
        (
            "network",
            f"{plan.style}: {network.n_layer} layers, width {network.n_embd}, {heads}, feed-forward "
            f"{network.hidden_size} ({network.feed_forward}), vocabulary {network.vocab_size:,}, context "
            f"{network.block_size:,}",
        ),
        ("", f"{total:,} parameters, {body_parameters(network):,} without embeddings ({off:+.1%} of what is asked)"),
        (
            "training",
            f"{plan.training_flops:.4g} FLOPs on {short(plan.trained_tokens, 4)} tokens: "
            f"{plan.training_flops / plan.trained_tokens / total:.3g} N a token by the analytic count",
        ),
    ]
    loss, low, high, what = plan.loss()
    rows.append(("loss", f"{loss:.3f} nats a token ({low:.3f} to {high:.3f}: {what})"))
    if law is KAPLAN:
        own = kaplan.loss(body_parameters(network), plan.trained_tokens)
        flops = plan.training_flops
        rows.append(
            (
                "Kaplan's own",
                f"{own:.3f} nats a token of WebText2; batch of {short(kaplan.optimal_batch(flops))} tokens",
            )
        )
    if both:
        rows += judgement_rows(plan)
    width = max(len(name) for name, _ in rows)
    parts = ["\n".join(f"{name:<{width}}  {text}" for name, text in rows), other_laws(plan)]
    parts.append(machine_table(plan, machine, utilisation))
    return "\n\n".join(parts)


def cost_words(law: ParametricLaw | Allocation) -> str:
    """The count of FLOPs that a law was made with, as a formula."""
    cost = law.cost
    return "6ND" if (cost.factor, cost.power) == (6.0, 1.0) else f"{cost.factor:.3g} N^{cost.power:.3f} D"


def judgement_rows(plan: ScalingPlan) -> list[tuple[str, str]]:
    """A given pair against the optimum of equal compute."""
    one = judge(plan.loss_law, plan.parameters, plan.tokens)
    lost = f"{one.loss - one.best_loss:.3f} nats a token"
    if plan.loss_law in PARAMETRIC:
        low, high = lost_range(plan.parameters, plan.tokens)
        lost += f" ({low:.3f} to {high:.3f} over the published fits)"
    return [
        (
            "verdict",
            f"{one.verdict}: {one.skew:.2g} times the optimum's tokens a parameter; best at equal FLOPs: "
            f"{short(one.best_parameters)} on {short(one.best_tokens)}",
        ),
        ("lost", f"{lost}; its loss costs {one.equal_flops:.3g} FLOPs at best, {one.equal_flops / one.flops:.0%}"),
        ("serving", one.remark),
    ]


def other_laws(plan: ScalingPlan) -> str:
    """What each published law makes of the plan's FLOPs."""
    flops = plan.budget.flops or plan.law.cost.flops(plan.parameters, plan.tokens)
    lines = [
        f"best split of {flops:.3g} FLOPs (6ND) by each published law",
        f"  {'law':<17} {'parameters':>10} {'tokens':>8} {'a parameter':>12} {'loss':>6}",
    ]
    for law in LAWS.values():
        size, tokens = law.optimum(flops)
        loss = f"{law.loss(size, tokens):.3f}" if isinstance(law, ParametricLaw) else "-"
        note = "  without embeddings" if law.counts == "body" else ""
        lines.append(
            f"  {law.name:<17} {short(size):>10} {short(tokens):>8} {tokens / size:>12.3g} {loss:>6}{note}".rstrip()
        )
    return "\n".join(lines)


def machine_table(plan: ScalingPlan, machine: Machine | None, utilisation: float) -> str:
    """Hours, dollars and energy of the network's analytic FLOPs."""
    if machine is None:
        machines = [Machine(one, 1, utilisation) for one in ACCELERATORS.values() if one.peak_flops]
    else:
        machines = [machine]
    used = machines[0].utilisation
    lines = [
        f"on machines that reach {used:.0%} of their dense bfloat16 peak; prices of {PRICES_OF} on demand, a guide "
        "(--price), energy of the boards alone",
        f"  {'machine':<34} {'peak TFLOP/s':>12} {'hours':>9} {'days':>8} {'US$':>11} {'kWh':>9}",
    ]
    for one in machines:
        hours = one.hours(plan.training_flops)
        dollars, energy = one.dollars(plan.training_flops), one.kilowatt_hours(plan.training_flops)
        money = "-" if dollars is None else f"{dollars:,.2f}" if dollars < 100 else f"{dollars:,.0f}"
        title = f"{one.devices} x {one.accelerator.title}"
        lines.append(
            f"  {title:<34} {one.accelerator.peak_flops / 1e12:>12.4g} {_count(hours):>9} {_count(hours / 24):>8} "
            f"{money:>11} {'-' if energy is None else _count(energy):>9}"
        )
    need = STATE_BYTES * parameters(plan.network)
    for one in machines if machine is not None else []:
        room = one.devices * one.accelerator.memory
        if room and need > room:
            least = math.ceil(need / one.accelerator.memory)
            lines.append(
                f"  weights, gradients and AdamW's moments ({need / 1e9:,.0f} GB) are more than {one.devices} x "
                f"{one.accelerator.memory / 1e9:g} GB: at least {least:,} devices, sharded"
            )
    return "\n".join(lines)


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
