"""Encode pieces of text with several processes, in order and in constant memory."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from lightning_gpt.data.split_documents import SplitPiece
from lightning_gpt.text.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 20
"""Text that one task encodes."""
BYTES_PER_WORKER = 32 << 20
"""A process costs about a second to start: one more for every so many bytes of text."""

_worker_tokenizer: Tokenizer | None = None


def choose_workers(workers: int | None, text_bytes: int) -> int:
    """Number of processes; 0 encodes in this one, where the tokenizers library uses threads. None chooses."""
    if workers is not None:
        if workers < 0:
            raise ValueError(f"workers={workers} must be 0 (this process) or more")
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = min(cores, text_bytes // BYTES_PER_WORKER)
    return wanted if wanted > 1 else 0


def encode_pieces(
    pieces: Iterable[SplitPiece], tokenizer: Tokenizer, workers: int
) -> Iterator[tuple[SplitPiece, np.ndarray]]:
    """Each piece with its ids (T,) uint32, in the order of the pieces."""
    batches = _batches(pieces)
    if workers == 0:
        for batch in batches:
            yield from zip(batch, tokenizer.encode_arrays([piece.text for piece in batch]))
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (tokenizer.to_json(),))
    waiting: deque[tuple[list[SplitPiece], Future]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(_encode, [piece.text for piece in batch])))
            if len(waiting) > 2 * workers:
                done, ids = waiting.popleft()
                yield from zip(done, ids.result())
        while waiting:
            done, ids = waiting.popleft()
            yield from zip(done, ids.result())
    except BrokenProcessPool as error:
        raise ValueError(f"workers={workers}: a process died (out of memory?): try fewer, or --workers 0") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(pieces: Iterable[SplitPiece]) -> Iterator[list[SplitPiece]]:
    batch, characters = [], 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _start_worker(tokenizer_json: str) -> None:
    global _worker_tokenizer
    # the processes are the parallelism; threads in each would only compete
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_tokenizer = Tokenizer.from_json(tokenizer_json)


def _encode(texts: list[str]) -> list[np.ndarray]:
    assert _worker_tokenizer is not None
    return _worker_tokenizer.encode_arrays(texts)
