import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from lightning_gpt.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:judge .* longer than its block_size", "ignore:prompts longer than")
"""The tiny model has a context of 64, too short for a judge's question; what it prefers does not matter here."""


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prefer_writes_pairs_that_a_judge_ordered_and_goes_on_after_a_kill(tiny_model, pair_rows, tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
    args = ["prefer", str(tiny_model), "--prompts", str(pair_rows), "--out", str(out), "--max_new_tokens", "8"]
    args += ["--judge", str(tiny_model), "--batch_size", "4", "--limit", "12"]
    main(args)
    whole = rows(out)
    assert 8 <= len(whole) <= 12 and "pairs of 12 prompts" in capsys.readouterr().out
    assert all(row["chosen"] != row["rejected"] and row["probability"] > 0.5 for row in whole)
    asked = {row["prompt"] for row in rows(pair_rows)[:12]}
    assert {row["prompt"] for row in whole} <= asked
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:5]) + lines[5][:9])  # killed in the middle of a line
    main(args)
    assert rows(out) == whole
    with pytest.raises(SystemExit):
        main([*args[:-1], "11"])
    assert "was made with other settings (limit)" in capsys.readouterr().err


def test_critique_goes_on_after_sigkill(tiny_model, as_lines, tmp_path):
    prompts = as_lines(tmp_path / "prompts.jsonl", [{"prompt": f"{n}?"} for n in range(24)])

    def command(out: str) -> list[str]:
        args = ["critique", str(tiny_model), "--prompts", str(prompts), "--out", str(tmp_path / out)]
        return [*args, "--max_new_tokens", "16", "--batch_size", "1"]

    killed = tmp_path / "killed.jsonl"
    program = [sys.executable, "-m", "lightning_gpt", *command(killed.name)]
    process = subprocess.Popen(program, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while (not killed.exists() or killed.read_bytes().count(b"\n") < 2) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 2 <= killed.read_bytes().count(b"\n") < 24
    main(command(killed.name))
    main(command("whole.jsonl"))
    assert rows(killed) == rows(tmp_path / "whole.jsonl") and len(rows(killed)) == 24


def test_ties_are_left_out_and_counted_also_by_a_second_call(tiny_model, as_lines, tmp_path, capsys):
    prompts = as_lines(tmp_path / "prompts.jsonl", [{"prompt": f"{n}?"} for n in range(12)])
    out = tmp_path / "pairs.jsonl"
    args = ["prefer", str(tiny_model), "--prompts", str(prompts), "--max_new_tokens", "8", "--judge", str(tiny_model)]
    main([*args, "--out", str(tmp_path / "all.jsonl")])
    sure = sorted(abs(row["probability"] - 0.5) for row in rows(tmp_path / "all.jsonl"))
    tie = (sure[3] + sure[4]) / 2
    capsys.readouterr()
    for _ in range(2):
        main([*args, "--out", str(out), "--tie", str(tie)])
        told = capsys.readouterr().out
        assert f"{len(sure) - 4} pairs of 12 prompts; {12 - len(sure) + 4} left out" in told
    assert all(abs(row["probability"] - 0.5) > tie for row in rows(out))
    as_lines(prompts, [{"prompt": f"{n}!"} for n in range(12)])
    with pytest.raises(SystemExit):
        main([*args, "--out", str(out), "--tie", str(tie)])
    assert "other settings (prompts' content)" in capsys.readouterr().err


def test_a_judge_that_is_not_there_is_told_before_answers_are_drawn(tiny_model, pair_rows, tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
    with pytest.raises(SystemExit):
        main(["prefer", str(tiny_model), "--prompts", str(pair_rows), "--out", str(out), "--judge", "./no/judge"])
    said = capsys.readouterr().err
    assert "./no/judge does not exist" in said and "prefer:" not in said


def test_labels_can_be_drawn(tiny_model, pair_rows, tmp_path):
    out = tmp_path / "pairs.jsonl"
    args = ["prefer", str(tiny_model), "--prompts", str(pair_rows), "--out", str(out), "--max_new_tokens", "8"]
    main([*args, "--judge", str(tiny_model), "--label", "drawn", "--answers", "3"])
    sure = [row["probability"] for row in rows(out)]
    assert min(sure) < 0.5 < max(sure)  # some people were of another opinion


def test_critique_keeps_every_step(tiny_model, as_lines, tmp_path):
    prompts = as_lines(tmp_path / "prompts.jsonl", [{"prompt": f"{n}?"} for n in range(5)])
    constitution = tmp_path / "constitution.yaml"
    constitution.write_text(yaml.safe_dump([{"critique": "Bad?", "revision": "Mend."}]))
    out = tmp_path / "sft.jsonl"
    args = ["critique", str(tiny_model), "--prompts", str(prompts), "--out", str(out), "--max_new_tokens", "8"]
    main([*args, "--constitution", str(constitution), "--rounds", "2", "--batch_size", "2"])
    found = rows(out)
    assert [row["prompt"] for row in found] == [f"{n}?" for n in range(5)]
    for row in found:
        assert len(row["critiques"]) == len(row["revisions"]) == 2 and row["completion"] == row["revisions"][-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["prefer", "--answers", "1"], "answers=1"),
        (["prefer", "--tie", "0.5"], "tie=0.5"),
        (["prefer", "--device", "cuda:99"], "device='cuda:99' cannot be used here"),
        (["prefer", "--temperature", "0"], "temperature=0.0 must be positive"),
        (["prefer", "--max_new_tokens", "900"], "leaves no room for a prompt"),
        (["critique", "--rounds", "0"], "rounds=0"),
        (["critique", "--constitution", "none.yaml"], "constitution none.yaml cannot be read"),
    ],
)
def test_bad_input(tiny_model, pair_rows, tmp_path, capsys, options, words):
    verb, *rest = options
    with pytest.raises(SystemExit):
        main([verb, str(tiny_model), "--prompts", str(pair_rows), "--out", str(tmp_path / "o"), *rest])
    assert words in capsys.readouterr().err


def test_best_of_n_by_a_reward(tiny_model, capsys):
    args = [
        "generate",
        str(tiny_model),
        "--prompt",
        "a",
        "--max_new_tokens",
        "6",
        "--num_samples",
        "5",
        "--json",
        "true",
    ]
    main(args)
    every = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    main([*args, "--reward", str(tiny_model)])
    (best,) = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    from lightning_gpt.rewards import open_judge

    grades = open_judge(str(tiny_model)).score(["a"] * 5, every)
    assert best == every[grades.index(max(grades))]
    with pytest.raises(SystemExit):
        main(["generate", str(tiny_model), "--prompt", "a", "--reward", "lexicon"])
    assert "set num_samples to 2 or more" in capsys.readouterr().err
