"""`lightning-gpt bench`."""

import json

import pytest

from lightning_gpt.cli import main


def test_a_preset(tmp_path, capsys):
    options = ["--batch", "1,3", "--prompt", "4", "--new", "5", "--cache", "int8", "--repeats", "1"]
    main(["bench", "tiny-llama", *options, "--dtype", "bfloat16", "--out", str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert "case 2/2: batch 3, prompt 4" in shown.err
    lines = shown.out.splitlines()
    assert "keys and values in int8" in lines[1] and "GB/s read" in lines[2]
    assert lines[3].split()[:4] == ["batch", "prompt", "first", "token"]
    assert [line.split()[:2] for line in lines[4:6]] == [["1", "4"], ["3", "4"]]
    content = json.loads((tmp_path / "out/bench.json").read_text())
    assert content["command"].startswith("lightning-gpt bench tiny-llama --batch 1,3 --prompt 4 --new 5")
    assert content["weight_type"] == "bfloat16" and len(content["speeds"]) == 2
    assert (tmp_path / "out/bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_directory(tiny_model, capsys):
    main(["bench", str(tiny_model), "--batch", "2", "--prompt", "3", "--new", "4", "--repeats", "1"])
    assert "tokens/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args, message",
    [
        (["tiny-llama", "--batch", "one"], "batch=one must be numbers with commas between them, such as 1,16"),
        (["gpt3-175b"], "gpt3-175b has 650.5 GiB of weights"),
        (["tiny-lama"], "did you mean the preset tiny-llama?"),
        (["tiny-llama", "--prompt", "500"], "block_size="),
    ],
)
def test_bad_input(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", *args])
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert message in line
