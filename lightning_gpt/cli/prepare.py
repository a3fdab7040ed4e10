"""`lightning-gpt prepare`: text to a directory of token ids."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lightning_gpt.data.prepare import PreparedCorpus


def prepare_command(
    source: str,
    tokenizer: str = "bpe:4096",
    out: str | None = None,
    file: str | None = None,
    text_field: str = "text",
    val_fraction: float = 0.1,
    split: Literal["tail", "document"] = "tail",
    shard_tokens: int = 100_000_000,
    workers: int | None = None,
    add_eos: bool | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Turn text into token ids that training reads.

    Args:
        source: "shakespeare" (embedded), "tinyshakespeare" (download, or give --file), a file or folder with .txt, .md,
            .jsonl or .parquet (each also .gz), or a Hugging Face dataset owner/name.
        tokenizer: char, byte, bpe:N, wordpiece:N or unigram:N (made from this corpus), gpt2, cl100k_base, o200k_base, a
            tokenizer.json or its directory, or a Hugging Face name owner/name.
        out: Directory to write; by default data/NAME.
        file: Local copy of a named corpus, read instead of downloading.
        text_field: Field or column of .jsonl, .parquet and datasets that holds the text.
        val_fraction: Share of the text kept for validation, between 0 and 1.
        split: "tail" keeps the last characters for validation, "document" whole documents chosen by hash.
        shard_tokens: Tokens per file.
        workers: Processes that encode; 0 uses this one alone; by default chosen by cores and amount of text.
        add_eos: End every document with the end-of-text token; by default where the tokenizer has one.
        seed: Seed of the document split.
        overwrite: Replace a prepared corpus in OUT that differs.
    """
    from lightning_gpt.data.prepare import prepare

    prepared = prepare(
        source,
        tokenizer=tokenizer,
        out=out,
        file=file,
        text_field=text_field,
        val_fraction=val_fraction,
        split=split,
        shard_tokens=shard_tokens,
        workers=workers,
        add_eos=add_eos,
        seed=seed,
        overwrite=overwrite,
    )
    print_statistics(prepared)


HEADINGS = ("split", "documents", "characters", "bytes", "tokens", "bytes/token")


def print_statistics(prepared: PreparedCorpus) -> None:
    """A short table: framed on a terminal, plain columns otherwise."""
    meta = prepared.meta
    rows = [
        (
            name,
            *(f"{number:,}" for number in (split.documents, split.characters, split.bytes, split.tokens)),
            f"{split.bytes_per_token:.3f}",
        )
        for name, split in meta.splits.items()
    ]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*HEADINGS)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    else:
        widths = [max(map(len, column)) for column in zip(HEADINGS, *rows)]
        for row in (HEADINGS, *rows):
            first, *others = (
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))
            )
            print("  ".join([first, *others]))
    unknown = sum(split.unknown_tokens for split in meta.splits.values())
    if unknown:
        print(f"{unknown:,} tokens are unknown to this tokenizer: that text is lost to the model")
    what = "up to date" if prepared.reused else "written"
    print(
        f"{prepared.directory}: {what} in {prepared.seconds:.1f} s, tokenizer {meta.tokenizer.scheme} with "
        f"{meta.tokenizer.vocab_size:,} ids"
    )
