"""Training speed beside nanoGPT, litgpt and Hugging Face: python -m benchmarks.training --nanogpt DIR.

Every measurement is a process of its own; rounds are interleaved (A B C A B C), so that a machine that slows down
slows everybody down; results are medians. Peers run as they ship. See benchmarks/README.md.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.measure import CONTESTANTS, contestant, measure
from benchmarks.report import write_json, write_report
from benchmarks.request import SETTINGS, SHAPES, Request
from benchmarks.summary import markdown, summarize


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", metavar="DIR", help="a clone of https://github.com/karpathy/nanoGPT")
    parser.add_argument("--sizes", default="S,M,L", help=f"of {','.join(SHAPES)} (default: %(default)s)")
    parser.add_argument(
        "--settings", default="fp32,bf16,bf16-compiled", help=f"of {','.join(SETTINGS)} (default: %(default)s)"
    )
    parser.add_argument("--contestants", default=",".join(CONTESTANTS), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, interleaved (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=3, help="timed windows a process (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="steps of a window (default: by size)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training.json"))
    options = parser.parse_args(arguments)
    for name, known in (("sizes", SHAPES), ("settings", SETTINGS), ("contestants", CONTESTANTS)):
        chosen = getattr(options, name).split(",")
        for one in chosen:
            if one not in known:
                parser.error(f"--{name}: {one!r} is unknown: use some of {','.join(known)}")
        setattr(options, name, chosen)
    if options.nanogpt:
        options.nanogpt = str(Path(options.nanogpt).resolve())
    if min(options.rounds, options.windows, options.steps or 1) < 1:
        parser.error("--rounds, --windows and --steps must be at least 1")
    return options


def present(options: argparse.Namespace) -> list[str]:
    """The contestants that can run here; says why the others cannot."""
    names = []
    for name in options.contestants:
        if name == "matrix_products" and options.device != "cpu":
            continue
        reason = contestant(name).missing(options.nanogpt)
        if reason:
            print(reason, flush=True)
        else:
            names.append(name)
    return names


def run(options: argparse.Namespace) -> dict:
    """Measures everything and keeps the JSON on disk up to date on the way."""
    names = present(options)
    results: dict = {
        "machine": describe_machine(),
        "settings": {
            "rounds": options.rounds,
            "windows": options.windows,
            "window_steps": {size: options.steps or SHAPES[size].window_steps for size in options.sizes},
            "device": options.device,
            "optimizer": "AdamW fused, lr 1e-3, gradient norm clipped at 1.0",
        },
        "measurements": [],
    }
    with tempfile.TemporaryDirectory(prefix="benchmark_") as workdir:
        for turn in range(options.rounds):
            for size in options.sizes:
                steps = results["settings"]["window_steps"][size]
                base = Request("", size, "", options.windows, steps, options.device, options.nanogpt, workdir)
                for setting in options.settings:
                    for name in names:
                        measured = measure(replace(base, contestant=name, setting=setting))
                        row = {"round": turn, "size": size, "setting": setting, "contestant": name, **measured}
                        results["measurements"].append(row)
                        write_json(options.out, results)
                        shown = ", ".join(f"{rate:,.0f}" for rate in measured.get("tokens_per_second", ()))
                        print(
                            f"round {turn + 1}/{options.rounds}  {size}  {setting:<13}  {CONTESTANTS[name]:<20}  "
                            f"{shown or 'failed: ' + measured['error']}",
                            flush=True,
                        )
    return results


def main() -> None:
    """Measures, then writes and prints the table."""
    options = parse()
    results = run(options)
    results["summary"] = summarize(results["measurements"])
    write_report(options.out, results, markdown(results))


if __name__ == "__main__":
    main()
