"""The printable alphabet that byte-level tokenizers write bytes in (GPT-2, Radford et al. 2019).

`tokenizer.json` holds strings, so byte-level schemes give each of the 256 bytes one printable character: printable
Latin-1 stands for itself, the other 68 bytes take the code points from 256 on ("Ġ" is the space, "Ċ" the newline).
"""

from __future__ import annotations

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in set(_PRINTABLE)]

BYTE_TO_CHARACTER: dict[int, str] = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(256 + index) for index, byte in enumerate(_OTHERS)
}
CHARACTER_TO_BYTE: dict[str, int] = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def bytes_to_token(raw: bytes) -> str:
    """The string that stands for `raw` in a byte-level vocabulary."""
    return "".join(BYTE_TO_CHARACTER[byte] for byte in raw)


def token_to_bytes(token: str) -> bytes:
    """Inverse of `bytes_to_token`; KeyError for a character outside the alphabet."""
    return bytes(CHARACTER_TO_BYTE[character] for character in token)
