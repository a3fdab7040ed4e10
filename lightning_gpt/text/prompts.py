"""Texts to continue, as ids."""

from lightning_gpt.text.tokenizer import Tokenizer


def prompt_ids(tokenizer: Tokenizer, text: str, vocab_size: int, image_token: str | None = None) -> list[int]:
    """Ids of a prompt, behind the token that the tokenizer's own template puts first (LLaMA's <s>, say).

    An empty prompt becomes one token: end-of-text where there is one, as between documents in training, else a
    line break, else id 0. Where the text has the image_token, that special token stands; all others are text.
    """
    ids = tokenizer.prefix_ids
    for place, piece in enumerate([text] if image_token is None else text.split(image_token)):
        shown = [tokenizer.special_tokens[image_token]] if place and image_token is not None else []
        ids = [*ids, *shown, *tokenizer.encode(piece)]
    if ids:
        return ids
    first = tokenizer.eos_id if tokenizer.eos_id is not None else tokenizer.bos_id
    if first is not None and first < vocab_size:
        return [first]
    try:
        return tokenizer.encode("\n")[:1] or [0]
    except ValueError:  # a character vocabulary without line break
        return [0]
