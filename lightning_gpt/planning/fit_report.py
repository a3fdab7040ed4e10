"""fit.md: a fitted law in words, tables and the figure."""

import os
from pathlib import Path

from lightning_gpt.planning.laws import BESIROGLU, HOFFMANN
from lightning_gpt.planning.published import short
from lightning_gpt.planning.scaling_fit import CONSTANTS, ScalingFit

MEANS = {
    "E": "loss that nothing goes below",
    "A": "weight of the size",
    "B": "weight of the tokens",
    "alpha": "exponent of the size",
    "beta": "exponent of the tokens",
    "a": "N_opt ~ C^a",
    "b": "D_opt ~ C^b",
}


def constants_table(fit: ScalingFit) -> str:
    """Each constant with its interval, beside the published ones."""
    lines = [f"| constant | | own | 95% interval | {BESIROGLU.name} | {HOFFMANN.name} |", "|---|---|---|---|---|---|"]
    for name in CONSTANTS:
        values = [getattr(fit.law, name), *fit.interval(name), getattr(BESIROGLU, name), getattr(HOFFMANN, name)]
        own, low, high, *others = (f"{value if abs(value) > 1e-6 else 0:.4g}" for value in values)
        lines.append(f"| {name} | {MEANS[name]} | {own} | {low} to {high} | {' | '.join(others)} |")
    return "\n".join(lines)


def predictions_table(fit: ScalingFit) -> str:
    """Held-out runs and asked-for points."""
    lines = ["| run | N | D | predicted | 95% interval | measured | |", "|---|---|---|---|---|---|---|"]
    for one in fit.predictions:
        measured = "-" if one.measured is None else f"{one.measured:.4f}"
        lines.append(
            f"| {one.name} | {short(one.parameters, 4)} | {short(one.tokens, 4)} | {one.loss:.4f} | "
            f"{one.low:.4f} to {one.high:.4f} | {measured} | {one.verdict} |"
        )
    return "\n".join(lines)


def power_law_lines(fit: ScalingFit) -> str:
    """L(N) and L(D), one a line."""
    if not fit.power_laws:
        return (
            "Neither the longest runs nor those of the largest network are three whose losses differ: no power law of "
            "one quantity."
        )
    symbols = {"parameters": "N", "tokens": "D"}
    return "\n".join(
        f"- L({symbols[one.of]}) = ({one.scale:.3g} / {symbols[one.of]})^{one.exponent:.4f} at {one.at}, {one.points} "
        f"runs; exponent {one.low:.4f} to {one.high:.4f} "
        f"(Kaplan et al.: {'0.076' if one.of == 'parameters' else '0.095'})"
        for one in fit.power_laws
    )


def isoflop_lines(fit: ScalingFit) -> str:
    """The profiles' minima."""
    found = fit.isoflop
    if found is None:
        return "No budget has three sizes, so there are no iso-FLOP profiles."
    how = "read between each size's runs" if found.profiles[0].interpolated else "measured"
    lines = [f"| FLOPs ({how}) | sizes | best size by the parabola | by the law |", "|---|---|---|---|"]
    for one in found.profiles:
        best = short(one.best_size) if one.curved else "no minimum"
        best += "" if one.inside or not one.curved else " (beyond the sizes)"
        lines.append(f"| {one.flops:.3g} | {len(one.sizes)} | {best} | {short(fit.law.optimum(one.flops)[0])} |")
    if found.a is not None:
        lines.append(f"\nThrough the minima among the sizes: N_opt ~ C^{found.a:.3f} (the law: {fit.law.a:.3f}).")
    else:
        lines.append("\nFewer than two minima lie among the sizes, so there is no line through them.")
    return "\n".join(lines)


def report_text(fit: ScalingFit, command: str, metric: str, figure: str | None) -> str:
    """The whole of fit.md."""
    law, cost = fit.law, fit.law.cost
    counted = "all parameters, embeddings included" if law.counts == "all" else "parameters without embeddings"
    flops = "6ND" if cost.factor == 6 and cost.power == 1 else f"{cost.factor:.3g} N^{cost.power:.3f} D"
    noise = fit.residuals.std(ddof=min(5, len(fit.runs) - 1))
    seeds = fit.seed_noise
    parts = [f"# Scaling law of {len(fit.runs)} runs", f"```\n{command}\n```"]
    parts += [f"Warning: {text}." for text in fit.warnings]
    parts.append(
        f"L(N, D) = {law.E:.4g} + {law.A:.4g} / N^{law.alpha:.4f} + {law.B:.4g} / D^{law.beta:.4f}, in nats a token "
        f"({metric}); N counts {counted}; training FLOPs {flops}, "
        + ("by definition." if flops == "6ND" else "the line through the runs' analytic counts.")
    )
    parts.append(constants_table(fit))
    parts.append(
        f"Intervals are percentiles of {len(fit.samples)} fits of resampled runs (all seeds of one size and length are "
        f"drawn together). Losses lie {noise:.2%} (standard deviation) from the law"
        + (f", seeds of one run {seeds:.2%} from one another." if seeds else ".")
        + " Published constants are of other text and another tokenizer: exponents compare, E, A and B do not."
    )
    if fit.predictions:
        parts += [
            "## Prediction",
            predictions_table(fit),
            "The interval is where one run should come out: the resampled fits times the residuals of the fit.",
        ]
    if figure:
        parts.append(f"![Loss over size, iso-FLOP profiles, frontier, predicted and measured]({figure})")
    parts += ["## Iso-FLOP profiles", isoflop_lines(fit)]
    parts += ["## Power laws of one quantity", power_law_lines(fit)]
    parts += ["## Runs", runs_table(fit)]
    return "\n\n".join(parts) + "\n"


def runs_table(fit: ScalingFit) -> str:
    """Every run with what the law says of it."""
    lines = ["| run | seed | N | D | FLOPs | loss | law | difference |", "|---|---|---|---|---|---|---|---|"]
    runs = [*fit.runs, *fit.held]
    for run, size, flops in zip(runs, fit.sizes(runs), fit.flops(runs)):
        predicted = fit.law.loss(size, run.tokens)
        held = " (held out)" if run in fit.held else ""
        lines.append(
            f"| {run.name}{held} | {run.seed} | {size:,.0f} | {run.tokens:,.0f} | {flops:.3g} | {run.loss:.4f} | "
            f"{predicted:.4f} | {run.loss / predicted - 1:+.2%} |"
        )
    return "\n".join(lines)


def write_report(fit: ScalingFit, command: str, metric: str, figure: str | None, path: Path) -> Path:
    """Writes fit.md, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(report_text(fit, command, metric, figure), encoding="utf-8")
    os.replace(temporary, path)
    return path
