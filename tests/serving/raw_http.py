"""HTTP as bytes on a socket, for what no client library would send."""

import json
import socket
import time
from contextlib import contextmanager, suppress

HOST = b"Host: localhost\r\n"


@contextmanager
def connected(port: int, source: str | None = None, timeout_s: float = 10.0):
    """A socket; source = the client's own address."""
    address = None if source is None else (source, 0)
    with socket.create_connection(("127.0.0.1", port), timeout_s, address) as made:
        yield made


def read_all(connection: socket.socket, timeout_s: float = 10.0) -> tuple[bytes, bool]:
    """What came, and whether the service closed the connection within the time."""
    parts, end = [], time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            data = connection.recv(1 << 16)
        except TimeoutError:
            break
        except ConnectionError:
            return b"".join(parts), True
        if not data:
            return b"".join(parts), True
        parts.append(data)
    return b"".join(parts), False


def answers(data: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of each answer; all have a Content-Length."""
    found = []
    while data:
        head, mark, data = data.partition(b"\r\n\r\n")
        assert mark, head
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", 0))
        found.append((int(first.split()[1]), headers, data[:size]))
        data = data[size:]
    return found


def exchange(port: int, data: bytes, timeout_s: float = 10.0, source: str | None = None):
    """Sends, and reads until the service closes the connection; a closed one without an answer gives []."""
    with connected(port, source) as connection:
        with suppress(ConnectionError):  # refused while it was sent: the answer may be there
            connection.sendall(data)
        received, closed = read_all(connection, timeout_s)
        assert closed, f"still open after {timeout_s} s: {received[:300]!r}"
        return answers(received)


def post(path: str, body: bytes, *headers: bytes) -> bytes:
    """A request that ends its connection."""
    lines = [b"Content-Type: application/json", b"Content-Length: %d" % len(body), b"Connection: close", *headers]
    return b"POST %b HTTP/1.1\r\n%b%b\r\n\r\n%b" % (path.encode(), HOST, b"\r\n".join(lines), body)


def error_of(body: bytes) -> dict:
    """The error of an answer, which must have OpenAI's shape."""
    content = json.loads(body)
    assert content.keys() == {"error"} and content["error"].keys() == {"message", "type", "param", "code"}
    assert isinstance(content["error"]["message"], str) and len(content["error"]["message"]) < 1000
    assert content["error"]["type"] and "Traceback" not in content["error"]["message"]
    return content["error"]
