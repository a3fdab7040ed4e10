import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from lightning_gpt.cli.baseline import baseline_command
from lightning_gpt.data import baseline
from lightning_gpt.data.baseline import corpus_baseline

TRAIN = [0, 1, 0, 1, 2, 0]
VAL = [0, 1, 2, 3]


def by_hand(train, val, vocab_size):
    """The definition, with dictionaries."""
    ones, pairs = Counter(train), Counter(pairwise(train))
    before, followers = Counter(train[:-1]), Counter(a for a, _ in pairs)
    unigram = {b: (ones[b] + 1) / (len(train) + vocab_size) for b in range(vocab_size)}

    def bigram(a, b):
        if a not in before:
            return unigram[b]
        return (pairs[a, b] + followers[a] * unigram[b]) / (before[a] + followers[a])

    for a in range(5):
        assert sum(bigram(a, b) for b in range(vocab_size)) == pytest.approx(1)
    targets = list(pairwise(val))
    return (
        -sum(math.log(unigram[b]) for _, b in targets) / len(targets),
        -sum(math.log(bigram(a, b)) for a, b in targets) / len(targets),
    )


def corpus(make_corpus, train, val, cuts=1):
    shards = [[shard] for shard in np.array_split(np.array(train), cuts)]
    return make_corpus({"train": shards, "val": [[np.array(val)]]})


def test_tiny_corpus_by_paper_and_pencil(make_corpus):
    found = corpus_baseline(corpus(make_corpus, TRAIN, VAL))
    # 6 tokens, 256 ids. n(0)=3 n(1)=2 n(2)=1: targets 1, 2, 3 have (3, 2, 1) / 262.
    assert found.unigram == pytest.approx(-math.log(3 * 2 * 1 / 262**3) / 3)
    # after 0 only 1 (twice); after 1: 0 and 2; after 2: 0, so 3 is left to the unigram.
    p = [(2 + 3 / 262) / 3, (1 + 2 * 2 / 262) / 4, (0 + 1 / 262) / 2]
    assert found.bigram == pytest.approx(-math.log(math.prod(p)) / 3)
    assert found.uniform == pytest.approx(math.log(256))
    assert found.targets == 3
    assert found.bits_per_byte(math.log(2)) == pytest.approx(1 / found.bytes_per_token)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_any_piece_and_either_table_count_the_same(make_corpus, monkeypatch, dense, piece):
    monkeypatch.setattr(baseline, "DENSE_VOCABULARY", 256 if dense else 0)
    random = np.random.default_rng(0)
    train, val = random.zipf(1.5, 500) % 256, random.zipf(1.4, 80) % 256
    found = corpus_baseline(corpus(make_corpus, train, val, cuts=3), piece=piece)
    assert (found.unigram, found.bigram) == pytest.approx(by_hand(train.tolist(), val.tolist(), 256))


def test_bad_corpora_are_refused(make_corpus, tmp_path):
    with pytest.raises(ValueError, match="does not exist: make it with"):
        corpus_baseline(tmp_path / "none")
    with pytest.raises(ValueError, match="split='val'"):
        corpus_baseline(make_corpus({"train": [[np.array(TRAIN)]]}, name="no_val"))
    with pytest.raises(ValueError, match=r"val split has 1 token\(s\)"):
        corpus_baseline(make_corpus({"train": [[np.array(TRAIN)]], "val": [[np.array([1])]]}, name="short"))


def test_command_prints_all_three(make_corpus, capsys):
    baseline_command(str(corpus(make_corpus, TRAIN, VAL)))
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert names == ["uniform", "unigram", "bigram"]
