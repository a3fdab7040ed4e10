"""What `lightning-gpt generate --draft` names, and the report of --stats."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lightning_gpt.inference import TextPiece
    from lightning_gpt.inference.speculator import Speculator
    from lightning_gpt.nn import GPT
    from lightning_gpt.text.tokenizer import Tokenizer

EARLY = "early_exit:"


def open_drafter(
    draft: str, net: GPT, tokenizer: Tokenizer, most: int, texts: int, dtype: torch.dtype | None, device: torch.device
) -> Speculator:
    """What guesses for the network.

    Args:
        draft: ngram, early_exit:LAYERS, or a model as `generate` takes it.
        net, tokenizer: that it guesses for.
        most: tokens guessed at once at most.
        texts: continued side by side.
        dtype, device: of a model that is opened.

    Raises:
        ValueError: early_exit without a number of layers that the network has, another tokenizer, or most below 1.
    """
    from lightning_gpt.inference.drafts import PromptLookup
    from lightning_gpt.inference.model_drafts import DraftModel, early_exit
    from lightning_gpt.inference.runners import make_runner
    from lightning_gpt.inference.speculator import Speculator

    speculator = Speculator(PromptLookup(), most)  # before anything is opened, for its checks
    texts = min(texts, speculator.max_texts)
    if draft == "ngram":
        return speculator
    if draft.startswith("early_exit"):
        layers = draft.removeprefix(EARLY)
        if not layers.isdigit():
            raise ValueError(
                f"draft={draft!r} needs a number of layers: early_exit:{max(net.config.n_layer // 3, 1)}, say"
            )
        return Speculator(early_exit(net, int(layers), make_runner, texts), most)
    from lightning_gpt.hub import open_model

    small, own = open_model(draft, dtype, device)
    if own is not None and own.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"draft={draft!r} has another tokenizer than the model: its guesses would be of other tokens; choose a "
            "smaller model of the same family"
        )
    return Speculator(DraftModel(make_runner(small), net.config.vocab_size, texts), most)


def with_stats(pieces: Iterator[TextPiece], drafter: Speculator | None) -> Iterator[TextPiece]:
    """The same pieces; at their end a line about them on standard error. The network is prepared before the first."""
    started, first, tokens = perf_counter(), 0.0, {}
    for piece in pieces:
        first = first or perf_counter() - started
        tokens[piece.row] = piece.tokens
        yield piece
    seconds, made = perf_counter() - started, sum(tokens.values())
    after = max(made - len(tokens), 0) / max(seconds - first, 1e-9)
    line = f"{made} tokens in {seconds:.2f} s, the first after {first:.2f} s, then {after:.1f} tokens/s"
    print("\n" + (line if drafter is None else f"{line}; {drafter.stats()}"), file=sys.stderr)
