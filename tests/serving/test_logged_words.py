"""Words are in the log only where log.prompts asks for them."""

import json

import pytest
from service_process import ServiceProcess


@pytest.mark.parametrize("asked_for", [pytest.param(False, marks=pytest.mark.slow), True])
def test_words_are_logged_only_where_they_are_asked_for(tmp_path, model_directory, asked_for):
    log = {"path": str(tmp_path / "words.jsonl"), "prompts": asked_for}
    models = [{"name": "tiny", "versions": [{"path": str(model_directory), "threads": 1}]}]
    running = ServiceProcess(tmp_path, {"models": models, "log": log})
    asked = {"prompt": "open sesame", "max_tokens": 8, "temperature": 0}
    _, whole = running.post("/v1/completions", asked)
    messages = [{"role": "user", "content": "open sesame"}]
    _, said = running.post("/v1/chat/completions", {"messages": messages, "max_tokens": 8, "temperature": 0})
    status, _ = running.post("/v1/completions", {**asked, "temperature": 9})
    assert status == 400
    running.close()
    text = (tmp_path / "words.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    lines = [
        line for line in lines if line["event"] == "request" and line["status"] == 200 and line["method"] == "POST"
    ]
    if not asked_for:
        assert "sesame" not in text and all("prompt" not in line for line in lines)
        return
    assert [line["prompt"] for line in lines] == ["open sesame", "user: open sesame"]
    answers = [whole["choices"][0]["text"], said["choices"][0]["message"]["content"]]
    assert [line["answer"] for line in lines] == answers
