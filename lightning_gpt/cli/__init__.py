"""`lightning-gpt`: one line a verb, and a verb's imports only when it is called."""

import importlib
import os
import sys
from collections.abc import Sequence

VERBS: dict[str, tuple[str, str, str]] = {
    "demo": ("demo", "demo_command", "the main job in two minutes: Shakespeare from text to sample"),
    "prepare": ("prepare", "prepare_command", "text to token shards: a named corpus, a file, a folder, a hub dataset"),
    "fit": ("training", "", "train: -c configs/<topic>.yaml -c configs/trainer/<machine>.yaml"),
    "validate": ("training", "", "measure the validation loss of a checkpoint"),
    "test": ("training", "", "as validate, under test/ names"),
    "predict": ("training", "", "run a task's predict_step over its data"),
    "generate": ("generate", "generate_command", "continue prompts with a checkpoint or model directory"),
    "chat": ("chat", "chat_command", "talk with a model on the terminal, and show it pictures"),
    "export": ("transfer", "export_command", "checkpoint or run to a model directory that transformers can load"),
    "import": ("transfer", "import_command", "Hugging Face directory or hub name to a model directory of ours"),
    "upcycle": ("transfer", "upcycle_command", "a dense model to a mixture of experts that starts from its weights"),
    "quantize": ("quantize", "quantize_command", "weights of 8 or 4 bits: RTN, GPTQ, AWQ, SmoothQuant, bitsandbytes"),
    "evaluate": (
        "evaluate",
        "evaluate_command",
        "MMLU, HellaSwag, GSM8K, HumanEval, BBQ, ...: table and report of a model",
    ),
    "search": ("picture_search", "search_command", "pictures that words, or another picture, describe (CLIP)"),
    "classify": ("picture_search", "classify_command", "which of some labels fits a picture, without training (CLIP)"),
    "pictures": ("picture_search", "pictures_command", "a sheet of training pictures as a model sees them"),
    "arena": ("arena", "arena_command", "models against each other before a judge: win rates, Elo, Bradley-Terry"),
    "prefer": ("feedback", "prefer_command", "answers of a model, ordered by a judge: pairs for reward models and DPO"),
    "critique": ("feedback", "critique_command", "answers, criticised by a constitution and revised: rows for SFT"),
    "plan": ("plan", "PLANS", "what a network costs before it is built: plan model gpt2"),
    "inspect": (
        "inspect",
        "inspect_command",
        "modules, shapes, parameters, FLOPs; pictures of positions and attention",
    ),
    "baseline": ("baseline", "baseline_command", "unigram and bigram losses of a prepared corpus, to compare with"),
    "bench": ("bench", "bench_command", "how fast a model generates here, and which share of the machine that takes"),
    "serve": ("serve", "serve_command", "models behind an HTTP API: OpenAI's shapes, a chat page, health, metrics"),
    "load": (
        "load",
        "load_command",
        "load a server at a given rate: latencies from when requests were due, errors, report",
    ),
    "tenant": ("tenant", "tenant_command", "an API key for the service, with its owner's limits"),
    "experiment": ("experiment", "EXPERIMENTS", "run a controlled experiment from its YAML, report, search"),
    "diagnose": ("diagnose", "diagnose_command", "what ails training runs, and what to change"),
    "learn": ("learn", "LEARN", "exercises of the chapters: start 05, hint 05.3, check 05.3; how far you are"),
    "compare": ("compare", "compare_command", "runs side by side: settings that differ, metrics, curves"),
}
"""verb -> module of this package, function in it (none: Lightning's own command line), help line."""


EXPECTED = {
    "ValueError",
    "OSError",
    "ImportError",
    "NonFiniteError",
    "RankFailure",
    "MisconfigurationException",
    "WorkerStartError",
    "CutOffError",
}
"""Errors by name, so that nothing is imported, whose message says all that a user needs."""


class BadInput(SystemExit):
    """A mistake of the caller: one line on stderr, exit status 2."""

    def __init__(self, message: str, status: int = 2) -> None:
        print(f"lightning-gpt: error: {message}", file=sys.stderr)
        super().__init__(status)


def help_text() -> str:
    """What `lightning-gpt --help` prints."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {line}" for verb, (_, _, line) in VERBS.items()]
    return "\n".join(
        [
            "usage: lightning-gpt VERB ...   (lightning-gpt VERB --help explains one)",
            "",
            "A GPT through its whole life on one code base.",
            "",
            *lines,
            "",
            "LIGHTNING_GPT_TRACEBACK=1 shows the whole traceback of an error.",
        ]
    )


def main(args: Sequence[str] | None = None) -> None:
    """Entry point.

    Args:
        args: command line without the program's name; None = sys.argv.

    Raises:
        SystemExit: 0 done, 2 bad input, 1 a run failed, 128 + n stopped by signal n.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(help_text())
        return
    if args[0] == "--version":
        from lightning_gpt import __version__

        print(__version__)
        return
    verb = args[0]
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise BadInput(f"unknown verb {verb!r}{hint} (see lightning-gpt --help)")
    module, function, _ = VERBS[verb]
    try:
        _run(verb, module, function, args[1:])
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone: nothing to say, nobody to say it to
        raise SystemExit(141) from None
    except Exception as error:
        if os.environ.get("LIGHTNING_GPT_TRACEBACK") or not is_expected(error):
            raise
        raise BadInput(one_line(error), status=1 if isinstance(error, RuntimeError) else 2) from None


def is_expected(error: BaseException) -> bool:
    """Whether an error speaks to the user (its message says all), as opposed to a bug of ours."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & EXPECTED)


def one_line(error: BaseException) -> str:
    """The message without line breaks, and without what jsonargparse wraps around an error of a class it builds."""
    from lightning_gpt.cli.messages import distill

    return distill(str(error))[0] or type(error).__name__


def _run(verb: str, module: str, function: str, args: list[str]) -> None:
    from lightning_gpt.cli.allocator import keep_freed_memory

    keep_freed_memory()
    if any(word in ("-h", "--help") or word.partition("=")[0].endswith(".help") for word in args):
        from jsonargparse import set_parsing_settings

        # Fields of dataclasses are explained below them; reading that takes 0.1 s, so only where it is shown.
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
    home = importlib.import_module(f"lightning_gpt.cli.{module}")
    if not function:
        home.run_training(verb, args)
        return
    from jsonargparse import auto_cli

    from lightning_gpt.cli.parsing import ClearErrorParser, completed

    sys.argv[0] = "lightning-gpt"
    command = getattr(home, function)
    auto_cli(command, args=completed(command, args), prog=f"lightning-gpt {verb}", parser_class=ClearErrorParser)
