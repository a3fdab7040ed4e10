"""Character tokenizer: one id per distinct character of the text it is made from."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lightning_gpt.text.roles import END_OF_TEXT
from lightning_gpt.text.scheme import CHARACTER_PATTERN
from lightning_gpt.text.tokenizer import Tokenizer


def char_tokenizer(characters: Iterable[str], end_of_text: bool = False) -> Tokenizer:
    """Ids in the order of code points, like nanoGPT's character data.

    Args:
        characters: a text, or any iterable of single characters; repetitions do not matter.
        end_of_text: add the special token <|endoftext|> as the last id. Without it the vocabulary is exactly the
            distinct characters.

    Raises:
        ValueError: no character at all, or something longer than one character.
    """
    distinct = sorted(set(characters))
    if not distinct:
        raise ValueError("a character vocabulary needs at least one character; the text is empty")
    if wrong := [item for item in distinct if len(item) != 1]:
        raise ValueError(f"a character vocabulary is made of single characters, not {wrong[0]!r}")
    # the model insists on naming an unknown token; it is not in the vocabulary, so unknown characters are errors
    model = models.WordLevel({character: index for index, character in enumerate(distinct)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(CHARACTER_PATTERN), "isolated")
    backend.decoder = decoders.Fuse()
    if end_of_text:
        backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer(backend)
