import io
import os
import pty
import select
import subprocess
import sys
import time

import pytest

from lightning_gpt.cli import main
from lightning_gpt.cli.chat import chat_command
from lightning_gpt.hub.llava_opening import open_llava
from lightning_gpt.inference.conversation import Conversation
from lightning_gpt.nn.pixels import to_pixels
from lightning_gpt.text.chat import ChatTemplate

Image = pytest.importorskip("PIL.Image")
SHORT = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "orange.png"
    Image.new("RGB", (40, 50), (200, 100, 0)).save(path)
    return str(path)


def test_one_message_or_several_in_turn(tiny_llava, picture, capsys):
    model, tokenizer = open_llava(tiny_llava)
    expected = Conversation(model.net, ChatTemplate(tokenizer, None, "<image>"), model, **SHORT)
    expected.show(to_pixels([Image.open(picture)], model.tower.preprocess))
    answers = ["".join(expected.ask(text)) for text in ("What?", "And?")]
    chat_command(str(tiny_llava), image=[picture], prompt=["What?"], **SHORT)
    assert capsys.readouterr().out == f"{answers[0]}\n"
    chat_command(str(tiny_llava), image=[picture], prompt=["What?", "And?"], **SHORT)
    assert capsys.readouterr().out == f"{answers[0]}\n{answers[1]}\n"
    main(["chat", str(tiny_llava), "--image", picture, "--prompt", "What?", "And?", "--max_new_tokens", "6"])
    assert capsys.readouterr().out == f"{answers[0]}\n{answers[1]}\n"


def test_lines_of_standard_input_are_messages(tiny_llava, picture, capsys, monkeypatch):
    lines = ["What?", "", "And?", "/reset", f"/image {picture}", "What?", "/reset", "What?", "/exit", "And?"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    chat_command(str(tiny_llava), **SHORT)
    talk = capsys.readouterr()
    model, tokenizer = open_llava(tiny_llava)
    conversation = Conversation(model.net, ChatTemplate(tokenizer, None, "<image>"), model, **SHORT)
    blind, following = ("".join(conversation.ask(text)) for text in ("What?", "And?"))
    conversation.reset()
    conversation.show(to_pixels([Image.open(picture)], model.tower.preprocess))
    seen = "".join(conversation.ask("What?"))
    assert talk.out == f"{blind}\n{following}\n{seen}\n{blind}\n"
    assert talk.err == ""
    assert seen != blind


def test_a_text_model_talks_and_says_what_it_forgets(tiny_model, capsys):
    chat_command(str(tiny_model), prompt=["one", "two", "three"], system="Be brief.", **SHORT)
    talk = capsys.readouterr()
    assert talk.out.count("\n") >= 3
    assert "(turns forgotten to make room: 2)" in talk.err
    chat_command(str(tiny_model), prompt=["one"], chat_template="{{ messages[0]['content'] }}>", **SHORT)
    other = capsys.readouterr().out
    assert other
    assert not talk.out.startswith(other)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["MODEL", "--image", "PICTURE", "--prompt", "a"], "--image needs a vision-language model (LLaVA)"),
        (["LLAVA", "--image", "/nowhere.png", "--prompt", "a"], "/nowhere.png cannot be read"),
        (["MODEL", "--prompt", "x" * 100], "make it shorter"),
        (["MODEL", "--chat_template", "chatml", "--prompt", "a"], "chat_template=chatml needs the tokens"),
        (["MODEL", "--temperature", "-1"], "temperature=-1.0 must be 0"),
        (["LLAVA", "--prompt", "<image> a"], "0 pictures were shown"),
        (["/nowhere/model"], "/nowhere/model does not exist"),
    ],
)
def test_mistakes_are_one_line(args, message, tiny_model, tiny_llava, picture, capsys, clean_process):
    places = {"MODEL": str(tiny_model), "LLAVA": str(tiny_llava), "PICTURE": picture}
    with pytest.raises(SystemExit) as stop:
        main(["chat", *(places.get(word, word) for word in args)])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_an_unknown_command_stops_a_script(tiny_model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("/immage a.png\n"))
    with pytest.raises(ValueError, match=r"'/immage a\.png' is no command: /image FILE"):
        chat_command(str(tiny_model))
    monkeypatch.setattr("sys.stdin", io.StringIO("/image a.png\n"))
    with pytest.raises(ValueError, match="cannot be shown pictures"):
        chat_command(str(tiny_model))


def test_a_conversation_on_a_terminal(tiny_llava, picture):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lightning_gpt", "chat", str(tiny_llava), "--max_new_tokens", "3"]
    talk = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)

    def heard() -> str:
        """Up to the next prompt."""
        text, until = b"", time.monotonic() + 60
        while not text.endswith(b"> ") and time.monotonic() < until:
            if select.select([ours], [], [], 0.1)[0]:
                text += os.read(ours, 4096)
        return text.decode(errors="replace")

    def told(line: str) -> str:
        os.write(ours, line.encode() + b"\n")
        return heard()

    try:
        assert "/image FILE shows a picture" in heard()
        first = told("What?").partition("What?\r\n")[2]
        assert len(first) > len("\r\n> ")
        assert "/nowhere.png cannot be read" in told("/image /nowhere.png")
        told(f"/image {picture}")
        assert told("What?").partition("What?\r\n")[2] != first
        assert "is no command" in told("/what")
        told("/reset")
        assert told("What?").partition("What?\r\n")[2] == first
        os.write(ours, b"\x04")  # Ctrl-D
        assert talk.wait(60) == 0
    finally:
        talk.kill()
        talk.wait()
        os.close(ours)
