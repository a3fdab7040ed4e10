"""`lightning-gpt diagnose`: what ails runs, told from what they logged."""

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_gpt.callbacks.diagnosis_report import Report
    from lightning_gpt.callbacks.diagnosis_signals import Facts, Signals
    from lightning_gpt.experiments.run_reader import Run


def diagnose_command(runs: list[str], figure: str | None = None, brief: bool = False) -> None:
    """Say what is wrong with training runs, and what to change.

    Judges by the numbers that a run logged: losses, learning rate, gradient norm, and what `fit` measures for it
    (diagnosis/). Reads runs of this program and of any Lightning program (TensorBoard event files, CSVLogger's
    metrics.csv) under the usual names, as far as their numbers go; runs that died or still train as well.

    Args:
        runs: directories, event files or quoted globs, such as runs/shakespeare 'runs/experiments/05*/heads/*/*'.
        figure: also draw the signals, with the findings marked, into this PNG.
        brief: one line a run.
    """
    from lightning_gpt.cli.fast_import import import_lightning

    import_lightning()
    from lightning_gpt.callbacks.diagnosis_rules import diagnose
    from lightning_gpt.experiments.run_finder import find_runs
    from lightning_gpt.experiments.run_reader import read_run

    directories: dict[Path, None] = {}
    for pattern in runs:
        try:
            directories |= dict.fromkeys(find_runs([pattern]))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
    judged = []
    for directory in directories:
        run = read_run(directory)
        for warning in run.warnings:
            print(f"error: {warning}", file=sys.stderr)
        signals = signals_of(run)
        if not len(signals["loss"]) and not signals.found_non_finite:
            print(f"error: {directory} holds no training loss{_names(run)}", file=sys.stderr)
            continue
        report = diagnose(signals)
        judged.append((directory, signals, report))
        print(_describe(run, signals, report, brief))
    if figure and judged:
        from lightning_gpt.cli.diagnosis_figure import columns, draw_diagnosis

        shown = len(columns(judged))
        note = f" ({shown} of {len(judged)} runs, the newest with findings first)" if shown < len(judged) else ""
        print(f"figure: {draw_diagnosis(judged, Path(figure))}{note}", file=sys.stderr)


def signals_of(run: "Run") -> "Signals":
    """The numbers of a run, with what is known of it from its settings, its corpus and its own diagnosis.json."""
    from lightning_gpt.callbacks.diagnosis import read_diagnosis
    from lightning_gpt.callbacks.diagnosis_signals import Facts, Series, Signals

    facts = Facts.of(read_diagnosis(run.directory).get("facts")).merged(facts_of(run))
    series = {name: Series(one.steps, one.values) for name, one in run.series.items() if name != "epoch"}
    stop = next((one for one in findings_in_training(run) if one["rule"] == "non_finite"), {})
    if not stop and run.status == "diverged" and run.message:
        stop = {"step": max((int(one.steps[-1]) for one in series.values()), default=0), "message": run.message}
    return Signals(series, facts, stop)


def findings_in_training(run: "Run") -> list[dict[str, Any]]:
    """What the run found while it trained."""
    from lightning_gpt.callbacks.diagnosis import read_diagnosis

    found = read_diagnosis(run.directory).get("findings")
    return [one for one in found if isinstance(one, dict) and "rule" in one] if isinstance(found, list) else []


def facts_of(run: "Run") -> "Facts":
    """What config.yaml or hparams.yaml, and the corpus that it names, say."""
    from lightning_gpt.callbacks.diagnosis import corpus_facts
    from lightning_gpt.callbacks.diagnosis_signals import Facts

    settings = run.settings

    def number(*names: str) -> Any:
        found = (settings[name] for name in names if isinstance(settings.get(name), int | float))
        return next((value for value in found if value is not True and value > 0), None)

    batch = [number("data.batch_size"), number("data.block_size")]
    devices = settings.get("trainer.devices")
    facts = Facts(
        max_steps=number("trainer.max_steps", "max_steps"),
        clip=number("trainer.gradient_clip_val", "gradient_clip_val"),
        optimizer=str(settings.get("model.optimizer") or settings.get("optimizer") or "") or None,
        lr=number("model.optimizer.lr", "lr", "learning_rate", "model.lr", "model.learning_rate"),
        init_std=number("model.config.init_std") if settings.get("model.config.initialization") == "gpt2" else None,
        pretrained=bool(settings.get("model.init_from")),
        vocab_size=number("vocab_size", "model.vocab_size", "model.config.vocab_size", "config.vocab_size"),
        batch_tokens=int(batch[0] * batch[1] * (number("trainer.accumulate_grad_batches") or 1))
        * (devices if isinstance(devices, int) and devices > 0 else 1)
        if all(batch)
        else None,
    )
    place = settings.get("data.data_dir")
    if not place:
        return facts
    # Paths of settings start where training was called: here, or somewhere above the run.
    roots = (root for root in (Path(), *run.directory.resolve().parents) if (root / str(place) / "meta.json").is_file())
    return facts.merged(corpus_facts(next((root / str(place) for root in roots), None)))


def _names(run: "Run") -> str:
    """What there is instead."""
    found = sorted(name for name in run.series if "loss" in name.lower()) or sorted(run.series)
    return f" (of {', '.join(found[:6])} none is known as one)" if found else ": nothing was logged"


def _describe(run: "Run", signals: "Signals", report: "Report", brief: bool) -> str:
    """The lines of one run."""
    loss, planned = signals["loss"], signals.facts.max_steps
    state = f"step {signals.last_step}{f' of {planned}' if planned else ''}"
    state += f", {run.status}" if run.status else ""
    state += f", training loss {loss.values[-1]:.3f}" if len(loss) else ""
    if report.findings:
        verdict = ", ".join(one.rule for one in report.findings)
    elif "rate_too_high" in report.unchecked:
        verdict = f"cannot be judged: {report.unchecked['rate_too_high']}"
    else:
        verdict = "healthy"
    lines = [f"{run.directory}: {verdict} ({state})"]
    if brief:
        return lines[0]
    for one in report.findings:
        lines += _wrapped(f"{one.severity}: {one.rule}: {one.message}.", "  ")
        lines += _wrapped(f"{one.advice}.", "    -> ")
    for one in findings_in_training(run):
        if one["rule"] not in [finding.rule for finding in report.findings]:
            lines += _wrapped(
                f"seen at step {one.get('step')}, not any more: {one['rule']}: {one.get('message')}", "  "
            )
    lines += _wrapped(f"looked for: {', '.join(report.checked) or 'nothing'}", "  ")
    reasons: dict[str, list[str]] = {}
    for rule, reason in report.unchecked.items():
        reasons.setdefault(reason, []).append(rule)
    for reason, rules in reasons.items():
        lines += _wrapped(f"could not look for: {', '.join(rules)} ({reason})", "  ")
    return "\n".join(lines)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        118,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )
