import pytest
from jsonargparse import auto_cli

from lightning_gpt.cli.prepare import prepare_command


def test_prepare_from_the_command_line(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("to be or not to be " * 50)
    args = [str(tmp_path / "a.txt"), "--tokenizer", "char", "--out", str(tmp_path / "out")]
    auto_cli(prepare_command, args=args)
    heading, train, val, last = capsys.readouterr().out.splitlines()
    assert heading.split() == ["split", "documents", "characters", "bytes", "tokens", "bytes/token"]
    assert train.split() == ["train", "1", "855", "855", "855", "1.000"]
    assert val.split()[:3] == ["val", "1", "95"]
    assert "written in" in last
    auto_cli(prepare_command, args=args)
    assert "up to date" in capsys.readouterr().out


def test_help_documents_every_option(capsys):
    with pytest.raises(SystemExit):
        auto_cli(prepare_command, args=["--help"])
    text = capsys.readouterr().out
    assert "Share of the text kept for validation" in text
    assert "Replace a prepared corpus" in text
