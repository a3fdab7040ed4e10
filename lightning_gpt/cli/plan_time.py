"""`lightning-gpt plan time`: how long a run will take and what it will cost."""


def plan_time(
    fit: list[str] | None = None,
    steps: int | None = None,
    calibrate: int = 40,
    gpus: str | None = None,
    utilisation: float = 0.4,
    price: float | None = None,
    peak_flops: float | None = None,
    vocab_size: int | None = None,
) -> None:
    """Wall time and cost of the run that `lightning-gpt fit` would make of the same -c files and settings.

    Without --gpus a short run on this machine measures a step, a validation and the start; with it the time follows
    from the analytic FLOPs and a table of accelerators.

    Args:
        fit: -c files and dotted settings, said as fit takes them.
        steps: optimizer steps of the run; null = trainer.max_steps.
        calibrate: optimizer steps of the short run.
        gpus: a machine such as 8xA100, instead of this one.
        utilisation: share of its peak that training reaches (MFU).
        price: US dollars for one device and hour.
        peak_flops: FLOP/s of one device, instead of the table's.
        vocab_size: where the corpus is not prepared here; only with gpus.
    """
    from lightning_gpt.cli.settings_check import parsed_arguments
    from lightning_gpt.experiments.live import duration
    from lightning_gpt.experiments.plan import network_of, tokens_per_step
    from lightning_gpt.experiments.settings import lookup
    from lightning_gpt.nn.flops import training_flops_per_token
    from lightning_gpt.planning.accelerators import parse_machine
    from lightning_gpt.planning.calibration import calibrate as measure

    settings = parsed_arguments(fit)
    trainer = settings.trainer
    steps = trainer.max_steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1: give --steps, or trainer.max_steps in a configuration")
    if price is not None and price < 0:
        raise ValueError(f"price={price:g} must not be negative (dollars for one device and hour)")
    tree = settings.as_dict()
    per_step = tokens_per_step(tree)
    if gpus is None:
        found = measure(fit, steps=calibrate)
        interval = trainer.val_check_interval
        validations = -(-steps // interval) if isinstance(interval, int) else 1
        seconds = found.run_seconds(steps, validations)
        rows = [
            ("a step", f"{found.step_seconds:.4g} s, {found.tokens_per_second:,.0f} tokens/s"),
            ("a validation", f"{found.validation_seconds:.3g} s, {validations} of them"),
            ("start and end", f"{found.start_seconds:.3g} s"),
            ("measured", f"over {found.steps} steps on this machine"),
        ]
        devices = trainer.devices if isinstance(trainer.devices, int) else 1
        dollars = None if price is None else seconds / 3600 * devices * price
        energy = None
    else:
        machine = parse_machine(gpus, utilisation, price, peak_flops)
        if per_step is None:
            raise ValueError("trainer.devices must be a number in the configurations, to count tokens by")
        network = network_of(tree, _vocabulary(lookup(tree, "data.init_args.data_dir"), vocab_size))
        if network is None:
            raise ValueError("model.init_args.config is missing in the configurations: FLOPs cannot be counted")
        flops = training_flops_per_token(network, network.block_size) * per_step * steps
        seconds, dollars, energy = 3600 * machine.hours(flops), machine.dollars(flops), machine.kilowatt_hours(flops)
        rows = [
            ("FLOPs", f"{flops:.4g} (analytic, head and full attention included)"),
            ("machine", f"{machine.devices} x {machine.accelerator.title} at {utilisation:.0%} of its peak"),
            ("a step", f"{seconds / steps:.4g} s"),
        ]
    tokens = f", {per_step * steps:,} tokens" if per_step else ""
    rows.append(("the run", f"{steps:,} steps{tokens}: {duration(seconds)} ({seconds:,.1f} s)"))
    if dollars is not None:
        rows.append(("cost", f"{dollars:,.2f} US dollars"))
    if energy is not None:
        rows.append(("energy", f"{energy:,.3g} kWh, of the boards alone"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _vocabulary(data_dir: str | None, given: int | None) -> int:
    from lightning_gpt.data.corpus_meta import CorpusMeta

    if given is not None:
        return given
    if data_dir is None:
        raise ValueError("vocab_size is not known: give --vocab_size, or data.init_args.data_dir in a configuration")
    try:
        return CorpusMeta.load(data_dir).tokenizer.vocab_size
    except (ValueError, OSError) as error:
        raise ValueError(f"vocab_size is not known, as {data_dir} is not prepared here: give --vocab_size") from error
