"""Exercises of 02, data."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.judging import close, equal, function, number, same
from lightning_gpt.learning.runs import Study, folder, opened


def check_vocabularies(answer: dict) -> None:
    """Two corpora of 512 and 8,192 pieces."""
    from lightning_gpt.data.corpus_meta import CorpusMeta

    sizes = []
    for key, wanted in (("data_512", 512), ("data_8192", 8192)):
        meta = CorpusMeta.load(folder(answer, key))
        if abs(meta.tokenizer.vocab_size - wanted) > 2:
            raise Wrong(f"{key}: its vocabulary has {meta.tokenizer.vocab_size} ids, asked for are {wanted}")
        sizes.append(meta.split("train").bytes_per_token)
    close("ratio", answer.get("ratio"), sizes[1] / sizes[0], 0.02)
    own = number("own_bytes_per_token", answer.get("own_bytes_per_token"))
    if not 0 < own < 16:
        raise Wrong(f"own_bytes_per_token: {own:g} cannot be: bytes of your sentence over its ids")


def check_rungs(answer: dict) -> None:
    """Below the bigram's bits per byte, and the step at which it passed."""
    from lightning_gpt.data.baseline import corpus_baseline

    run = opened(answer)
    corpus = folder(run.settings, "data.data_dir")
    found = corpus_baseline(corpus)
    if "val/bits_per_byte" not in run.series:
        raise Wrong(f"{run.directory} has not logged val/bits_per_byte")
    own = run.series["val/bits_per_byte"]
    for key, nats in (("step_below_unigram", found.unigram), ("step_below_bigram", found.bigram)):
        below = own.steps[own.values < found.bits_per_byte(nats)]
        if not len(below):
            raise Wrong(f"{run.directory} never comes below {key.rpartition('_')[2]}'s bits per byte: train longer")
        close(key, answer.get(key), float(below[0]), 0, 0.5)


def check_unseen(answer: dict) -> None:
    """Shares of tokens that no window held, counted by the samplers themselves."""
    import numpy as np

    from lightning_gpt.data.sampler import EpochWindows, RandomWindows

    tokens, block = 200_000, 64
    for key, sampler in (("random", RandomWindows), ("epoch", EpochWindows)):
        starts = sampler(tokens, block, 1).starts(0, tokens // block)
        seen = np.zeros(tokens, bool)
        for offset in range(block):
            seen[starts + offset] = True
        close(key, answer.get(key), float(1 - seen.mean()), 0, 0.02)


def check_study(answer: dict) -> None:
    """2,048 pieces against 8,192."""
    from lightning_gpt.experiments.statistics import compare

    study = Study(answer)
    study.has("bpe-2048", "bpe-8192")
    study.needs(2, 5)
    found = compare({"bpe-8192": study.differences("bpe-8192", "bpe-2048")})["bpe-8192"].verdict
    equal("verdict", answer.get("verdict"), found)


BPE_STUB = '''
def learn(text, merges):
    """Byte-pair encoding, learnt from the UTF-8 bytes of a text as one sequence.

    Each step joins the neighbouring pair that occurs most often; of pairs that occur equally often the smallest
    (left id, then right id). Occurrences are counted at every place, so "aaa" has the pair (a, a) twice. The first new
    id is 256. Learning ends early when no pair occurs twice.

    Returns:
        the pairs of ids, in the order in which they were learnt.
    """
    raise NotImplementedError


def encode(text, pairs):
    """Ids of a text: every pair in the order of learning is joined wherever it stands, from left to right."""
    raise NotImplementedError


def decode(ids, pairs):
    """The text again."""
    raise NotImplementedError


if __name__ == "__main__":
    pairs = learn("banana bandana", 3)
    print(pairs, encode("banana", pairs))
    assert decode(encode("banana né", pairs), pairs) == "banana né"
'''


def _joined(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    joined, place = [], 0
    while place < len(ids):
        if tuple(ids[place : place + 2]) == pair:
            joined.append(new)
            place += 2
        else:
            joined.append(ids[place])
            place += 1
    return joined


def learn(text: str, merges: int) -> list[tuple[int, int]]:
    """As the stub says."""
    ids, pairs = list(text.encode()), []
    while len(pairs) < merges:
        counts = Counter(itertools.pairwise(ids))
        if not counts or max(counts.values()) < 2:
            break
        most = max(counts.values())
        pairs.append(min(pair for pair, count in counts.items() if count == most))
        ids = _joined(ids, pairs[-1], 255 + len(pairs))
    return pairs


def encode(text: str, pairs: list[tuple[int, int]]) -> list[int]:
    """As the stub says."""
    ids = list(text.encode())
    for place, pair in enumerate(pairs):
        ids = _joined(ids, tuple(pair), 256 + place)
    return ids


def decode(ids: list[int], pairs: list[tuple[int, int]]) -> str:
    """As the stub says."""
    pieces = {byte: bytes([byte]) for byte in range(256)}
    for place, (left, right) in enumerate(pairs):
        pieces[256 + place] = pieces[left] + pieces[right]
    return b"".join(pieces[id] for id in ids).decode()


TEXTS = (
    "aaaa",
    "banana bandana",
    "to be or not to be, that is the question",
    "né né, 你好你好 né",
    "abcabcabc xyxyxy abab",
)


def check_bpe(answer: Any) -> None:
    """Pairs, ids and the way back."""
    train, write, read = (function(answer, name) for name in ("learn", "encode", "decode"))
    for text in TEXTS:
        pairs = train(text, 12)
        equal(f"learn({text!r}, 12)", [tuple(pair) for pair in pairs or []], learn(text, 12))
    pairs = learn(TEXTS[2] * 3, 20)
    for text in (*TEXTS, "a", ""):
        ids = write(text, pairs)
        equal(f"encode({text!r})", ids, encode(text, pairs))
        equal("decode of it", read(ids, pairs), text)


CHAR_STUB = '''
class CharTokenizer:
    """One id for each distinct character of a text, in the order of their code points."""

    def __init__(self, text):
        raise NotImplementedError

    def encode(self, text):
        """list of ids; ValueError for a character that the vocabulary lacks."""
        raise NotImplementedError

    def decode(self, ids):
        """The text again."""
        raise NotImplementedError


if __name__ == "__main__":
    tokenizer = CharTokenizer("hello")
    assert tokenizer.encode("hello") == [1, 0, 2, 2, 3]
    assert tokenizer.decode([1, 0, 2, 2, 3]) == "hello"
'''


def check_char(answer: Any) -> None:
    """Against this package's tokenizer."""
    from lightning_gpt.text.char import char_tokenizer

    made = function(answer, "CharTokenizer")
    for text in ("hello", "To be, or not\nto be", "né 你好 ok", "zyx"):
        tokenizer, ours = made(text), char_tokenizer(text)
        equal(f"encode({text!r})", list(tokenizer.encode(text)), ours.encode(text))
        equal(f"decode(encode({text!r}))", tokenizer.decode(tokenizer.encode(text)), text)
    try:
        ids = made("abc").encode("abd")
    except ValueError:
        return
    raise Wrong(f"encode of a character that the vocabulary lacks gives {ids}: raise a ValueError")


def solve_char() -> dict:
    """Of text/char.py."""
    from lightning_gpt.text.char import char_tokenizer

    return {"CharTokenizer": char_tokenizer}


BATCH_STUB = '''
import torch


def batch(tokens, starts, block_size):
    """Windows and what comes after each of their tokens.

    Args:
        tokens: (N,) int64, the corpus.
        starts: list of B first positions.
        block_size: T.

    Returns:
        x, y: (B, T) int64 each; y[b, t] is the token behind x[b, t].
    """
    raise NotImplementedError


if __name__ == "__main__":
    x, y = batch(torch.arange(10), [0, 5], 4)
    assert x.tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    assert y.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
'''


def reference_batch(tokens: Any, starts: list[int], block_size: int) -> tuple:
    """As data/token_data.py takes windows."""
    import torch

    windows = torch.stack([tokens[start : start + block_size + 1] for start in starts])
    return windows[:, :-1], windows[:, 1:]


def check_batch(answer: Any) -> None:
    """Up to the last window that there is."""
    import torch

    make = function(answer, "batch")
    for count, starts, block in ((20, [0, 7, 3], 5), (9, [0], 8), (300, [1, 1, 290], 9)):
        tokens = torch.randint(1000, (count,))
        given = make(tokens.clone(), starts, block)
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise Wrong("batch: two tensors are wanted, x and y")
        for name, mine, right in zip("xy", given, reference_batch(tokens, starts, block)):
            same(f"{name} of starts {starts}, block_size {block}, {count} tokens", mine, right, 0)


EXERCISES = (
    Exercise(
        1,
        "Sixteen times the ids",
        "run",
        "Prepare Shakespeare with bpe:512 and bpe:8192. By which factor does the second have more bytes a token? And "
        "how many has a sentence of your own language?",
        "data_512:              # folder\ndata_8192:             # folder\nratio:\nown_bytes_per_token:",
        check_vocabularies,
        (
            "lightning-gpt prepare shakespeare --tokenizer bpe:512 --out data/s512; its meta.json has bytes and "
            "tokens.",
            "bytes / tokens of the train split, the larger vocabulary over the smaller.",
        ),
        "vocabularies",
    ),
    Exercise(
        1,
        "Past the rungs of counting",
        "run",
        "Train until val/bits_per_byte is below what `lightning-gpt baseline` says of bigrams. At which logged step "
        "did it pass each rung?",
        "run:\nstep_below_unigram:\nstep_below_bigram:",
        check_rungs,
        (
            "metrics.jsonl has a line with val/bits_per_byte for each validation.",
            "The first such step counts; validate more often (--trainer.val_check_interval) to see more rungs.",
        ),
        "rungs",
    ),
    Exercise(
        2,
        "Windows nobody sees",
        "measure",
        "200,000 tokens, windows of 64, as many as would cover the corpus once: which share of the tokens is in none, "
        "with RandomWindows and with EpochWindows (lightning_gpt/data/sampler.py)?",
        "random:   # between 0 and 1\nepoch:    # between 0 and 1",
        check_unseen,
        (
            "sampler.starts(0, count) are first positions; mark positions start to start + 63.",
            "A token is missed by one window with probability 1 - 64 / N, by N / 64 of them with ...",
        ),
        "unseen",
        lambda: "random: 0.368\nepoch: 0.0003\n",
    ),
    Exercise(
        2,
        "2,048 or 8,192",
        "run",
        "Write experiments/02_data/tokenizers.yaml anew with bpe-2048 first, these two variants and five seeds. The "
        "verdict is the report's: better, worse or not distinguishable.",
        "experiment:   # folder with results.json\nverdict:      # of bpe-8192",
        check_study,
        (
            "The first variant is the reference; names are bpe-2048 and bpe-8192.",
            "report.md has the verdict beside each difference.",
        ),
        "two_sizes",
    ),
    Exercise(
        3,
        "Byte-pair encoding",
        "component",
        "Learn merges, encode with them, decode without loss.",
        BPE_STUB,
        check_bpe,
        (
            "Write one function that joins a pair in a list of ids, and use it in both learn and encode.",
            "min() over the pairs with the highest count settles ties; in 'aaa' joining takes the first two.",
            "A character may be cut in the middle of its bytes: put bytes together first, then decode UTF-8.",
        ),
        "bpe",
        lambda: {"learn": learn, "encode": encode, "decode": decode},
    ),
    Exercise(
        2,
        "A character tokenizer",
        "component",
        "The smallest tokenizer that there is: round trip without loss, and no silence about what it does not know.",
        CHAR_STUB,
        check_char,
        ("sorted(set(text)) is the vocabulary.", "A dict raises KeyError, which is no ValueError."),
        "char",
        solve_char,
    ),
    Exercise(
        2,
        "Shifted batches",
        "component",
        "Every position of a window is a question; its answer is the next token.",
        BATCH_STUB,
        check_batch,
        ("Take block_size + 1 tokens of each window.", "All but the last are x, all but the first are y."),
        "batch",
        lambda: {"batch": reference_batch},
    ),
)
