import random

import pytest

from lightning_gpt.serving.response_cache import OVERHEAD, ResponseCache, cache_key, cacheable


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0, "n": 1, "stream": False}, True),
        ({"seed": 0}, True),
        ({"seed": 7, "temperature": 1.3}, True),
        ({}, False),
        ({"temperature": None, "seed": None}, False),
        ({"temperature": 0.1}, False),
        ({"temperature": False}, False),
        ({"seed": True}, False),
        ({"seed": "7"}, False),
        ({"temperature": 0, "n": 2}, False),
        ({"temperature": 0, "best_of": 2}, False),
        ({"temperature": 0, "stream": True}, False),
    ],
)
def test_only_requests_with_one_answer_are_cacheable(request_, expected):
    assert cacheable({"model": "m", "prompt": "p", **request_}) is expected


def test_two_requests_share_a_key_only_when_they_share_the_answer():
    body = {"model": "m", "prompt": "p", "temperature": 0, "stop": ["a", "b"]}
    key = cache_key("/v1/completions", "v1", "ada", body)
    assert key == cache_key("/v1/completions", "v1", "ada", dict(reversed(body.items())) | {"user": "u", "n": None})
    others = [
        cache_key("/v1/chat/completions", "v1", "ada", body),
        cache_key("/v1/completions", "v2", "ada", body),
        cache_key("/v1/completions", "v1", "bob", body),
        *(
            cache_key("/v1/completions", "v1", "ada", body | change)
            for change in ({"prompt": "q"}, {"stop": ["b", "a"]}, {"seed": 1}, {"max_tokens": 5}, {"prompt": ["p"]})
        ),
    ]
    assert len({key, *others}) == len(others) + 1
    cache_key("/v1/completions", "v1", "ada", {"prompt": "\udc80 ж"})


@pytest.mark.parametrize("seed", range(10))
def test_it_holds_what_it_should_within_its_bytes_and_its_time(clock, seed):
    draw = random.Random(seed)
    cache, plain = ResponseCache(40 * (OVERHEAD + 100), 50.0, clock), {}
    for _ in range(5000):
        clock.now += draw.expovariate(5)
        key = bytes([draw.randrange(100)])
        if draw.random() < 0.5:
            answer = draw.randbytes(draw.randint(0, 200))
            cache.put(key, answer)
            plain[key] = answer, clock.now
        else:
            found = cache.get(key)
            if found is not None:
                answer, at = plain[key]
                assert found == answer
                assert clock.now < at + 50
        assert cache.bytes == sum(len(answer) + OVERHEAD for answer, _ in cache._answers.values())
        assert cache.bytes <= cache.max_bytes
    assert cache.hits > 500
    assert cache.misses > 500
    cache.clear()
    assert (len(cache), cache.bytes, cache.get(key)) == (0, 0, None)


def test_the_longest_unused_goes_first_and_the_huge_are_not_kept(clock):
    cache = ResponseCache(5 * (OVERHEAD + 10), 1e9, clock)
    for number in range(5):
        cache.put(bytes([number]), b"0123456789")
    cache.get(b"\0")
    cache.put(b"\5", b"0123456789")
    assert cache.get(b"\0") is not None
    assert cache.get(b"\1") is None
    cache.put(b"\6", bytes(cache.max_bytes))
    assert cache.get(b"\6") is None
    assert len(cache) == 5
    off = ResponseCache(0, 60, clock)
    off.put(b"a", b"")
    assert off.get(b"a") is None
