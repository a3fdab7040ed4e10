"""What guesses for a network, by a word."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gpt.inference.drafts import PromptLookup
from lightning_gpt.inference.model_drafts import DraftModel, early_exit
from lightning_gpt.inference.runners import make_runner
from lightning_gpt.inference.speculator import Speculator
from lightning_gpt.nn import GPT
from lightning_gpt.text.tokenizer import Tokenizer

EARLY = "early_exit:"


def open_drafter(
    draft: str,
    net: GPT,
    tokenizer: Tokenizer,
    most: int,
    texts: int,
    open_model: Callable[[str], tuple[GPT, Tokenizer | None]],
) -> Speculator:
    """What guesses for the network.

    Args:
        draft: ngram, early_exit:LAYERS, or the name of a model.
        net, tokenizer: that it guesses for.
        most: tokens guessed at once at most.
        texts: continued side by side.
        open_model: opens a model by its name.

    Raises:
        ValueError: early_exit without a number of layers that the network has, another tokenizer, or most below 1.
    """
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
    small, own = open_model(draft)
    if own is not None and own.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"draft={draft!r} has another tokenizer than the model: its guesses would be of other tokens; choose a "
            "smaller model of the same family"
        )
    return Speculator(DraftModel(make_runner(small), net.config.vocab_size, texts), most)
