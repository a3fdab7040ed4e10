"""deploy/serve/nginx/ in a real nginx, before two small servers that say what has reached them."""

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

NGINX = Path(__file__).parents[2] / "deploy" / "serve" / "nginx"
pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx: apt-get install nginx-light")


class Upstream(ThreadingHTTPServer):
    """Answers with what it was sent; /stream sends its second part only after `go_on`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name, self.go_on, self.left = name, threading.Event(), threading.Event()
        self.connections: set[tuple] = set()
        self.sockets: list[socket.socket] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Ends, and with it the connections that nginx keeps."""
        self.go_on.set()
        self.shutdown()
        self.server_close()
        for one in self.sockets:
            with contextlib.suppress(OSError):  # closed already
                one.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.sockets.append(self.connection)

    def log_message(self, *words: object) -> None:
        pass

    def part(self, text: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
        self.wfile.flush()

    def do_GET(self) -> None:
        self.server.connections.add(self.client_address)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/stream":
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.part(b"data: 1\n\n")
            self.server.go_on.wait(20)
            self.part(b"data: [DONE]\n\n")
            self.part(b"")
            return
        if self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"data: x\n\n" * 100)
            except OSError:
                self.server.left.set()
            return
        said = {"name": self.server.name, "headers": {key.lower(): one for key, one in self.headers.items()}}
        answer = json.dumps(said | {"path": self.path, "bytes": len(body)}).encode()
        self.send_response(503 if self.path == "/busy" else 200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Proxy:
    """nginx as configured, with this machine's addresses in place of compose's names."""

    def __init__(self, folder: Path, upstreams: str, service: int, canary: int, replace: dict[str, str]) -> None:
        self.port, self.log = free_port(), folder / "access.jsonl"
        inner = free_port()
        text = (NGINX / "nginx.conf").read_text()
        changes = {"/tmp/nginx": f"{folder}/nginx", "listen 8080": f"listen 127.0.0.1:{self.port}"}
        changes |= {"127.0.0.1:8081": f"127.0.0.1:{inner}", "/dev/stdout": str(self.log), **replace}
        changes |= {"worker_processes auto": "worker_processes 1", "/dev/stderr": str(folder / "error.log")}
        for old, new in changes.items():
            assert old in text, old
            text = text.replace(old, new)
        (folder / "nginx.conf").write_text(text)
        (folder / "upstreams").mkdir()
        servers = (NGINX / "upstreams" / f"{upstreams}.conf").read_text()
        servers = servers.replace("service:8000", f"127.0.0.1:{service}").replace("canary:8000", f"127.0.0.1:{canary}")
        (folder / "upstreams" / "active.conf").write_text(servers)
        words = ["nginx", "-p", folder, "-c", folder / "nginx.conf", "-g", "daemon off; user root;"]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None, self.process.stderr.read()
                threading.Event().wait(0.02)

    def ask(self, path: str = "/v1/models", body: bytes | None = None, **headers: str) -> tuple[int, dict, dict]:
        """Status, headers and JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        names = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, body, names)
        answer = connection.getresponse()
        said = json.loads(answer.read() or b"null")
        connection.close()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, said

    def stop(self) -> None:
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(20)


@pytest.fixture
def proxied(tmp_path):
    """(how to start nginx, the service, the canary)."""
    service, canary = Upstream("service"), Upstream("canary")
    started = []

    def start(upstreams: str = "single", **replace: str) -> Proxy:
        ports = service.server_address[1], canary.server_address[1]
        started.append(Proxy(tmp_path, upstreams, *ports, replace))
        return started[-1]

    yield start, service, canary
    for one in (service, canary):
        one.stop()
    for proxy in started:
        proxy.stop()


def test_a_stream_arrives_piece_by_piece(proxied):
    start, service, _ = proxied
    proxy = start()
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    connection.request("POST", "/stream", b"{}")
    answer = connection.getresponse()
    assert answer.read1() == b"data: 1\n\n"  # while the server still waits
    assert not service.go_on.is_set()
    service.go_on.set()
    assert answer.read() == b"data: [DONE]\n\n"


def test_one_who_leaves_is_seen_to_leave(proxied):
    start, service, _ = proxied
    proxy = start()
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(100)
    assert service.left.wait(20)


def test_ids_go_through_or_are_given_and_connections_are_kept(proxied):
    start, service, _ = proxied
    proxy = start()
    status, _, said = proxy.ask(X_Request_Id="abc-1")
    assert status == 200 and said["headers"]["x-request-id"] == "abc-1"
    assert said["headers"]["x-forwarded-for"] == "127.0.0.1" and "connection" not in said["headers"]
    for bad in ("", "a b", 'x"y', "a" * 129):
        _, _, said = proxy.ask(X_Request_Id=bad)
        assert re.fullmatch("[0-9a-f]{32}", said["headers"]["x-request-id"])
    for _ in range(20):
        proxy.ask()
    assert len(service.connections) <= 2
    proxy.ask("/health/live")
    proxy.stop()
    rows = [json.loads(line) for line in proxy.log.read_text().splitlines()]
    assert len(rows) == 25 and rows[0]["request_id"] == "abc-1"  # and no line of the health check
    assert rows[0]["status"] == 200 and rows[0]["endpoint"] == "/v1/models" and rows[0]["upstream_status"] == "200"


def test_refusals_have_the_shape_of_the_service(proxied):
    start, service, _ = proxied
    proxy = start()
    status, _, said = proxy.ask("/v1/completions", b"x" * 2**20)
    assert status == 200 and said["bytes"] == 2**20
    status, headers, said = proxy.ask("/v1/completions", b"x" * (2**20 + 1), X_Request_Id="big")
    assert status == 413 and said["error"]["code"] == "body_too_large" and headers["x-request-id"] == "big"
    status, headers, said = proxy.ask(X_Long="a" * 40_000)
    assert status == 400 and said["error"]["type"] == "invalid_request_error"
    for path in ("/metrics", "/admin/models"):
        status, _, said = proxy.ask(path)
        assert status == 404 and said["error"]["type"] == "not_found_error"
    status, _, said = proxy.ask("/busy")
    assert status == 503 and said["name"] == "service"  # the service's own words are left as they are
    service.stop()
    status, headers, said = proxy.ask()
    assert status == 503 and said["error"]["code"] == "no_worker" and headers["retry-after"]


def test_an_address_that_asks_too_often_waits(proxied):
    start, _, _ = proxied
    proxy = start(**{"rate=2000r/s": "rate=1r/s", "burst=1000": "burst=3"})
    statuses = [proxy.ask()[0] for _ in range(12)]
    assert statuses[0] == 200 and statuses.count(429) >= 6
    _, headers, said = next(one for one in (proxy.ask() for _ in range(50)) if one[0] == 429)
    assert headers["retry-after"] == "1" and said["error"]["code"] == "rate_limit_exceeded"


def test_slow_senders_are_cut_off(proxied):
    start, service, _ = proxied
    limits = {"client_header_timeout 5s": "client_header_timeout 1s"}
    proxy = start(**limits, **{"client_body_timeout 10s": "client_body_timeout 1s"})
    beginnings = [b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx"]
    clients = [socket.create_connection(("127.0.0.1", proxy.port), 10) for _ in beginnings]
    for client, beginning in zip(clients, beginnings, strict=True):
        client.sendall(beginning)
    for client in clients:
        with client:
            try:
                assert b" 200 " not in client.recv(1000)
            except ConnectionResetError:
                continue
    assert not service.connections


def test_a_canary_gets_its_share_and_clients_stay(proxied):
    start, _, canary = proxied
    proxy = start("canary")
    names = [proxy.ask(Authorization=f"Bearer {number}")[2]["name"] for number in range(400)]
    assert 5 <= names.count("canary") <= 45  # 5% of 400 within four deviations
    assert names[:50] == [proxy.ask(Authorization=f"Bearer {number}")[2]["name"] for number in range(50)]
    assert proxy.ask(X_Release="canary")[2]["name"] == "canary"
    assert proxy.ask(X_Release="stable")[2]["name"] == "service"
    canary.stop()
    assert proxy.ask(X_Release="canary")[2]["name"] == "service"
