"""HTTP/1.1 answers (RFC 9112) and server-sent events, read from bytes as they come; no sockets here."""

from __future__ import annotations

from collections.abc import Callable

MOST_HEAD = 64 * 1024
"""Bytes of header after which an answer counts as malformed."""
HEAD, LENGTH, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER, UNTIL_CLOSE, DONE = range(8)


class MalformedAnswerError(Exception):
    """What came is no HTTP/1.1 answer."""


class AnswerReader:
    """Reads one answer at a time; `begin` makes it ready for the next.

    A body has a content length, comes in chunks, or ends with the connection.
    """

    __slots__ = ("_buffer", "_left", "_sink", "_state", "keep_alive", "retry_after", "status")

    def begin(self, sink: Callable[[bytes], object]) -> None:
        """Awaits an answer, whose body is given to `sink` piece by piece."""
        self._sink = sink
        self._state = HEAD
        self._buffer = b""
        self._left = 0
        self.status = 0
        self.keep_alive = True
        self.retry_after: str | None = None

    def feed(self, data: bytes) -> bool:
        """Takes what came; True = the answer is complete.

        Raises:
            MalformedAnswerError: it is no answer, or goes on after its end.
        """
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        while True:
            state = self._state
            if state in (LENGTH, CHUNK):
                left = self._left
                if len(data) < left:
                    self._left = left - len(data)
                    if data:
                        self._sink(data)
                    return False
                if left:
                    self._sink(data if len(data) == left else data[:left])
                data = data[left:]
                self._state = DONE if state == LENGTH else CHUNK_END
            elif state == UNTIL_CLOSE:
                if data:
                    self._sink(data)
                return False
            elif state == DONE:
                if data:
                    raise MalformedAnswerError("bytes after the end of the answer")
                return True
            elif state == HEAD:
                end = data.find(b"\r\n\r\n")
                if end < 0:
                    return self._keep(data)
                self._read_head(data[:end])
                data = data[end + 4 :]
            else:
                end = data.find(b"\r\n")
                if end < 0:
                    return self._keep(data)
                self._read_line(state, data[:end])
                data = data[end + 2 :]

    def end_of_file(self) -> bool:
        """The server closed; whether that is the answer's proper end."""
        return self._state == UNTIL_CLOSE

    def _keep(self, data: bytes) -> bool:
        if len(data) > MOST_HEAD:
            raise MalformedAnswerError(f"more than {MOST_HEAD} bytes without the line's end")
        self._buffer = data
        return False

    def _read_head(self, head: bytes) -> None:
        if head[:7] != b"HTTP/1." or not head[9:12].isdigit():
            raise MalformedAnswerError("no status line")
        self.status = int(head[9:12])
        if self.status < 200:
            return  # 100 Continue and its like: the answer is still to come
        self.keep_alive = head[7:8] == b"1"
        self._state = UNTIL_CLOSE
        length = None
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            name = name.lower()
            if name == b"content-length":
                length = value.strip()
            elif name == b"transfer-encoding":
                if value.strip().lower() != b"chunked":
                    raise MalformedAnswerError("an encoding that was not asked for")
                self._state = CHUNK_SIZE
            elif name == b"connection":
                self.keep_alive = b"close" not in value.lower()
            elif name == b"retry-after":
                self.retry_after = value.strip().decode("latin-1")
        if self.status in (204, 304):
            self._state = DONE
        elif self._state != CHUNK_SIZE and length is not None:
            if not length.isdigit():
                raise MalformedAnswerError("content-length is no number")
            self._left, self._state = int(length), LENGTH
        if self._state == UNTIL_CLOSE:
            self.keep_alive = False

    def _read_line(self, state: int, line: bytes) -> None:
        if state == CHUNK_SIZE:
            try:
                self._left = int(line.partition(b";")[0], 16)
            except ValueError:
                raise MalformedAnswerError("a chunk's size is no number") from None
            if self._left < 0:
                raise MalformedAnswerError("a chunk's size is below 0")
            self._state = CHUNK if self._left else TRAILER
        elif state == CHUNK_END:
            if line:
                raise MalformedAnswerError("a chunk is longer than its size")
            self._state = CHUNK_SIZE
        elif not line:  # of the trailer, whose fields say nothing to us
            self._state = DONE


class EventReader:
    """Splits a stream of server-sent events into the data of each."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Data of the events that are complete now; events without data, such as comments, are left out."""
        data = self._rest + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *events, self._rest = data.split(b"\n\n")
        found = []
        for event in events:
            if event.startswith(b"data:") and b"\n" not in event:
                found.append(event[5:].lstrip(b" "))
                continue
            lines = [line[5:].lstrip(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                found.append(b"\n".join(lines))
        return found
