import asyncio
import json
import threading

import pytest

from lightning_gpt.cli import main


@pytest.fixture
def url():
    """Of a server that answers everything alike."""
    body = json.dumps({"data": [{"id": "m"}], "choices": [{"text": "x"}], "usage": {"completion_tokens": 2}}).encode()
    loop, ready = asyncio.new_event_loop(), threading.Event()
    found = []

    class Answer(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def serve():
        asyncio.set_event_loop(loop)
        found.append(loop.run_until_complete(loop.create_server(Answer, "127.0.0.1", 0)))
        ready.set()
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    ready.wait(10)
    yield f"http://127.0.0.1:{found[0].sockets[0].getsockname()[1]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def test_a_load_reports_and_its_aims_decide_the_exit_status(url, tmp_path, capsys, clean_process, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GPT_API_KEY", "hidden-key")
    args = ["load", url, "--rate", "100", "--duration", "0.5", "--output", str(tmp_path), "--arrivals", "constant"]
    main([*args, "--max_error_rate", "0", "--max_p99_ms", "5000", "--min_rate", "1"])
    shown = capsys.readouterr().out
    assert "50 requests to m" in shown and "report.html" in shown and "latency" in shown
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["command"].startswith(f"lightning-gpt load {url} --rate 100") and content["missed_aims"] == []
    assert content["settings"]["api_keys"] == 1 and "hidden-key" not in (tmp_path / "results.json").read_text()
    with pytest.raises(SystemExit) as stop:
        main([*args, "--api_key", "secret-key", "--min_rate", "1e6", "--max_p99_ms", "5000"])
    assert stop.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("lightning-gpt: error: aim missed, min_rate: ") and "max_p99_ms" not in error
    assert "secret-key" not in (tmp_path / "results.json").read_text() + (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "args, message",
    [
        (["http://192.0.2.7:80"], "--allow_remote true"),
        (["http://127.0.0.1:1", "--model", "m"], "no server at 127.0.0.1:1"),
        (["http://127.0.0.1:1", "--steps", "5"], "steps=5"),
        (["http://127.0.0.1:1", "--watch_pid", "x"], "watch_pid=x"),
        (["http://127.0.0.1:1", "--cpu", "9999"], "cpu=9999"),
        (["http://127.0.0.1:1", "--prompts", "no/such/file"], "no/such/file"),
    ],
)
def test_mistakes_are_one_line(args, message, capsys, clean_process):
    with pytest.raises(SystemExit) as stop:
        main(["load", *args])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
