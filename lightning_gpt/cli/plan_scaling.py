"""`lightning-gpt plan scaling`: how large a network to train, on how much, for a budget."""

from pathlib import Path


def plan_scaling(
    flops: float | None = None,
    gpus: str | None = None,
    days: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    law: str = "besiroglu",
    style: str = "llama",
    vocab: int | None = None,
    context: int | None = None,
    utilisation: float = 0.4,
    price: float | None = None,
    peak_flops: float | None = None,
    published: bool = False,
    figure: str | None = None,
    out: str | None = None,
) -> None:
    """Best size and tokens for a budget, a network of that size, its predicted loss, and hours, cost and energy.

    Give exactly one of --flops, --gpus with --days, --params, --tokens; --params with --tokens judges that pair.

    Args:
        flops: training FLOPs to spend.
        gpus: the machine, such as 8xA100; with days it is the budget, without it is what the plan is priced on.
        days: how long the machine is had.
        params: parameters of the network, as the law counts them.
        tokens: tokens to train on.
        law: besiroglu (default), hoffmann, hoffmann-rounded, approach-1, approach-2, approach-3, kaplan, or the
            fit.json of `lightning-gpt plan fit`.
        style: proportions and parts of the network: llama or gpt.
        vocab: ids of the vocabulary; null = by size.
        context: tokens of a window; null = by size.
        utilisation: share of the peak that training reaches (MFU).
        price: US dollars for one device and hour, instead of the table's; needs gpus.
        peak_flops: FLOP/s of one device, instead of the table's; needs gpus, and cpu needs it.
        published: print how published models compare with the law instead of a plan.
        figure: PNG for the frontier, with the published models and the plan.
        out: file for the text (Markdown), besides the screen.
    """
    said = {**locals()}
    from lightning_gpt.cli.command_line import command_line
    from lightning_gpt.planning.accelerators import check_utilisation, parse_machine
    from lightning_gpt.planning.fit_file import open_law
    from lightning_gpt.planning.laws import BESIROGLU, ParametricLaw
    from lightning_gpt.planning.scaling_plan import Budget, make_plan, plan_text

    command = command_line("plan scaling", plan_scaling, said)
    chosen, samples = open_law(law)
    if published:
        _published(chosen, any(one is not None for one in (flops, gpus, days, params, tokens)), figure, out, command)
        return
    check_utilisation(utilisation)
    if gpus is None:
        for name, value in (("days", days), ("price", price), ("peak_flops", peak_flops)):
            if value is not None:
                raise ValueError(f"{name}={value:g} is about a machine: name it, such as --gpus 8xA100")
    machine = parse_machine(gpus, utilisation, price, peak_flops) if gpus else None
    words = ""
    if days is not None:
        if flops is not None:
            raise ValueError("give exactly one of --flops, --gpus with --days, --params, --tokens; got flops and days")
        flops = machine.flops(days)
        one = machine.accelerator
        words = f"{machine.devices} x {one.title} for {days:g} days at {utilisation:.0%} of {one.peak_flops:.3g} FLOP/s"
    elif machine is not None and flops is params is tokens is None:
        raise ValueError(f"gpus={gpus} needs --days to be a budget (or --flops, --params, --tokens to be priced on it)")
    plan = make_plan(Budget(flops, params, tokens, words), chosen, style, vocab, context, samples)
    text = plan_text(plan, machine, utilisation)
    print(text)
    if figure:
        from lightning_gpt.planning.scaling_figure import draw_frontier

        drawn = chosen if isinstance(chosen, ParametricLaw) else BESIROGLU
        print(f"\n{draw_frontier(Path(figure), drawn, plan)}")
    if out:
        _write(Path(out), f"```\n{command}\n```\n\n```\n{text}\n```\n")


def _published(law, budget: bool, figure: str | None, out: str | None, command: str) -> None:
    from lightning_gpt.planning.laws import ParametricLaw
    from lightning_gpt.planning.published import ABOUT, published_table

    if budget:
        raise ValueError("published is a table of its own: leave the budget out")
    if not isinstance(law, ParametricLaw):
        raise ValueError(f"law={law.name} tells no loss: use besiroglu, hoffmann, hoffmann-rounded or a fit.json")
    table = published_table(law)
    print(table)
    names = ""
    if figure:
        from lightning_gpt.planning.scaling_figure import draw_frontier

        print(f"\n{draw_frontier(Path(figure), law)}")
        names = f"\n![Published models on the compute frontier]({Path(figure).name})\n"
    if out:
        _write(
            Path(out),
            f"# Were published models trained on enough?\n\n```\n{command}\n```\n\n"
            f"The law is `{law.name}` ({law.source}). A model counts as about optimal when its tokens a parameter lie "
            f'within a factor of {ABOUT:g} of the optimum at equal compute. "Loss lost" is its loss above that '
            "optimum, in nats a token, and in brackets the least and most over the three published fits of Hoffmann's "
            "runs. All of it is what the law says of N and D alone: other data, other tokenizers and repeated tokens "
            "are not in it. The last column counts 2N FLOPs a token served against the 6ND spent in training beyond "
            f"the best network of equal loss.\n{names}\n{table}\n",
        )


def _write(path: Path, text: str) -> None:
    import os

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
