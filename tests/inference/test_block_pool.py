import random

import pytest

from lightning_gpt.inference.block_pool import BlockPool, chain_hash, root_hash


def chain(text, size=4, salt=""):
    hashes = [root_hash(salt)]
    for start in range(0, len(text) // size * size, size):
        hashes.append(chain_hash(hashes[-1], text[start : start + size]))
    return hashes[1:]


def test_equal_hashes_mean_equal_texts_from_the_first_token_on():
    text = list(range(12))
    assert chain(text) == chain([*text, 99])
    assert chain(text)[:2] == chain([*text[:8], 0, 0, 0, 0])[:2]
    assert not set(chain(text)) & set(chain([1, *text[1:]]))
    assert not set(chain(text)) & set(chain(text, salt="another"))
    assert len(set(chain([7] * 12))) == 3


def test_what_was_published_is_found_until_its_block_is_needed():
    pool, hashes = BlockPool(4), chain(list(range(12)))
    blocks = pool.take(3)
    for block, digest in zip(blocks, hashes):
        pool.publish(block, digest)
    assert pool.find(hashes) == blocks
    assert pool.find([*hashes[:1], b"other", hashes[2]]) == blocks[:1]
    pool.release(blocks)
    assert pool.available == 4
    assert pool.find(hashes) == blocks
    pool.take(2)  # the empty one, and the last of the chain
    assert pool.find(hashes) == blocks[:2]
    pool.hold(blocks[:1])
    assert pool.take(1) == [blocks[1]]
    assert pool.available == 0
    with pytest.raises(IndexError, match="1 blocks asked for, 0 available"):
        pool.take(1)
    pool.check([blocks[:1], [blocks[1]], [blocks[2]], [3]])


def test_the_least_recently_used_is_forgotten_first():
    pool = BlockPool(3)
    names = [b"a", b"b", b"c"]
    blocks = pool.take(3)
    for block, name in zip(blocks, names):
        pool.publish(block, name)
    pool.release(blocks)  # c is the end of the chain, so it goes first, then b
    pool.hold([blocks[2]])
    pool.release([blocks[2]])
    assert pool.take(1) == [blocks[1]]
    assert pool.take(1) == [blocks[0]]
    assert pool.find([b"c"]) == [blocks[2]]


def test_the_first_of_two_equal_blocks_is_found():
    pool = BlockPool(2)
    first, second = pool.take(2)
    pool.publish(first, b"a")
    pool.publish(second, b"a")
    pool.publish(first, b"b")
    assert pool.find([b"a"]) == [first]
    assert pool.find([b"b"]) == []
    pool.release([second])
    pool.check([[first]])
    assert pool.take(1) == [second]


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_lost_or_held_twice(seed):
    draw = random.Random(seed)
    pool, held = BlockPool(12), []
    texts = [[draw.randrange(2) for _ in range(20)] for _ in range(6)]
    for _ in range(400):
        if held and draw.random() < 0.45:
            pool.release(held.pop(draw.randrange(len(held))))
        else:
            hashes = chain(draw.choice(texts))[: draw.randint(1, 5)]
            found = pool.find(hashes)
            fresh = len(hashes) - len(found)
            if fresh > pool.available - pool.idle(found):
                continue
            pool.hold(found)
            blocks = found + pool.take(fresh)
            for block, digest in zip(blocks, hashes[: draw.randint(0, 5)]):
                pool.publish(block, digest)
            held.append(blocks)
        pool.check(held)
    for blocks in held:
        pool.release(blocks)
    assert pool.available == 12
