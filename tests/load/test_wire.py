import random

import pytest

from lightning_gpt.load.wire import AnswerReader, EventReader, MalformedAnswerError

LENGTH = b"HTTP/1.1 200 OK\r\nX-A: b\r\ncontent-LENGTH:  5 \r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nConnection: close\r\n\r\n"
    b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: 1\r\n\r\n"
)
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"


def read(pieces):
    """status, body, complete, keep_alive, retry_after."""
    reader, body, complete = AnswerReader(), [], False
    reader.begin(body.append)
    for piece in pieces:
        assert not complete
        complete = reader.feed(piece)
    return reader.status, b"".join(body), complete, reader.keep_alive, reader.retry_after


@pytest.mark.parametrize(
    "answer, expected",
    [
        (LENGTH, (200, b"hello", True, True, None)),
        (CHUNKED, (200, b"hello", True, False, None)),
        (INTERIM, (200, b"hello", True, True, None)),
        (REFUSED, (429, b"", True, True, "7")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"", True, True, None)),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", (200, b"hello", False, False, None)),
    ],
)
def test_answers_are_read_however_they_are_cut(answer, expected):
    assert read([answer]) == expected
    assert read([answer[place : place + 1] for place in range(len(answer))]) == expected
    draw = random.Random(0)
    for _ in range(50):
        cuts = sorted(draw.sample(range(1, len(answer)), 4))
        assert read([answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)])]) == expected


def test_a_reader_begins_anew():
    reader, body = AnswerReader(), []
    for _ in range(2):
        reader.begin(body.append)
        assert reader.feed(LENGTH) and not reader.end_of_file()
    assert body == [b"hello", b"hello"]
    reader.begin(body.append)
    assert not reader.feed(b"HTTP/1.1 200 OK\r\n\r\n") and reader.end_of_file()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        LENGTH + b"x",
        b"a" * 70_000,
    ],
)
def test_what_is_no_answer_is_told(answer):
    with pytest.raises(MalformedAnswerError):
        read([answer])


def test_events_are_read_however_they_are_cut():
    stream = b'data: {"a": 1}\n\n: comment\n\ndata:two\r\n\r\nevent: x\ndata: 3\ndata: 4\n\ndata: [DONE]\n\ndata: cut'
    expected = [b'{"a": 1}', b"two", b"3\n4", b"[DONE]"]
    for size in (1, 2, 3, 7, len(stream)):
        reader = EventReader()
        found = [event for place in range(0, len(stream), size) for event in reader.feed(stream[place : place + size])]
        assert found == expected
