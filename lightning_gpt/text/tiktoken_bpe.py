"""OpenAI's published encodings (gpt2, cl100k_base, o200k_base) as a Tokenizer, from their byte ranks."""

from __future__ import annotations

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from lightning_gpt.text.byte_alphabet import bytes_to_token
from lightning_gpt.text.tiktoken_patterns import PATTERNS, SPECIAL_TOKENS
from lightning_gpt.text.tokenizer import Tokenizer


def tiktoken_tokenizer(name: str, ranks: dict[bytes, int]) -> Tokenizer:
    """Build the tokenizer; ids are tiktoken's.

    Args:
        name: "gpt2", "cl100k_base" or "o200k_base".
        ranks: id of every byte string, special tokens left out.

    Raises:
        ValueError: unknown name, or ranks that are not those of the published encoding.
    """
    if name not in PATTERNS:
        raise ValueError(f"encoding {name!r} is unknown: choose one of {', '.join(PATTERNS)}")
    special = SPECIAL_TOKENS[name]
    vocabulary = {bytes_to_token(raw): rank for raw, rank in ranks.items()}
    model = models.BPE(vocabulary | special, merges(ranks), ignore_merges=True)
    backend = tokenizers.Tokenizer(model)
    if name == "gpt2":  # its pattern is the one built into ByteLevel
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        split = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[name]), "isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = Tokenizer(backend)
    if tokenizer.scheme != f"tiktoken:{name}":
        raise ValueError(f"the {len(ranks)} ranks given for {name} are not those of the published encoding")
    return tokenizer


def merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """Merge rules that do what ranks do: any two neighbours may join, the lowest rank of the result first.

    tiktoken looks only at the rank of the joined bytes, so every way of cutting a token in two known parts is a
    rule, in the order of the token's rank.
    """
    rules = []
    for raw, rank in ranks.items():
        for cut in range(1, len(raw)):
            left, right = ranks.get(raw[:cut]), ranks.get(raw[cut:])
            if left is not None and right is not None:
                rules.append((rank, left, right, raw[:cut], raw[cut:]))
    rules.sort(key=lambda rule: rule[:3])
    return [(bytes_to_token(left), bytes_to_token(right)) for *_, left, right in rules]
