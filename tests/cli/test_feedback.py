import json

import pytest
import yaml

from lightning_gpt.cli import main


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prefer_writes_pairs_that_a_judge_ordered_and_goes_on_after_a_kill(tiny_model, pair_rows, tmp_path, capsys):
    from lightning_gpt.rewards import Lexicon

    out = tmp_path / "pairs.jsonl"
    judge = tmp_path / "judge.yaml"
    args = ["prefer", str(tiny_model), "--prompts", str(pair_rows), "--out", str(out), "--max_new_tokens", "8"]
    args += ["--judge", str(tiny_model), "--batch_size", "4", "--limit", "12"]
    main(args)
    whole = rows(out)
    assert 8 <= len(whole) <= 12 and "pairs of 12 prompts" in capsys.readouterr().out
    assert all(row["chosen"] != row["rejected"] and row["probability"] > 0.5 for row in whole)
    asked = {row["prompt"] for row in rows(pair_rows)[:12]}
    assert {row["prompt"] for row in whole} <= asked and not judge.exists() and Lexicon
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:5]) + lines[5][:9])  # killed in the middle of a line
    main(args)
    assert rows(out) == whole
    with pytest.raises(SystemExit):
        main([*args[:-1], "11"])
    assert "was made with other settings" in capsys.readouterr().err


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
