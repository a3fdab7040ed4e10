"""search, classify, pictures, baseline and export through the command line."""

import json

import pytest
import torch
from PIL import Image

from lightning_gpt.cli import main
from lightning_gpt.hub.clip_directory import ClipModel, save_clip
from lightning_gpt.nn.clip import build_clip
from lightning_gpt.nn.clip_config import ClipConfig, TextConfig, VisionConfig


@pytest.fixture
def place(clean_process, tmp_path):
    """A CLIP directory with random weights, and a folder with four pictures, one of them broken."""
    torch.manual_seed(0)
    config = ClipConfig(16, VisionConfig(16, 8, 32, 1, 16), TextConfig(12, width=32, heads=2, layers=1)).to_open_clip()
    save_clip(tmp_path / "clip", ClipModel(build_clip(config).eval(), config, {"size": 16}))
    (tmp_path / "images").mkdir()
    rows = []
    for name in ("red", "green", "blue"):
        Image.new("RGB", (20, 20), name).save(tmp_path / "images" / f"{name}.png")
        rows.append({"image": f"images/{name}.png", "caption": f"a {name} square"})
    (tmp_path / "images" / "broken.png").write_bytes(b"x")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_search_by_words_and_by_picture(place, capsys):
    arguments = ["--images", "images", "--model", "clip", "--top", "2", "--out", "found.png"]
    main(["search", "a red heart", *arguments])
    out, err = capsys.readouterr()
    assert "3 pictures searched (4 new)" in out and "broken.png is no picture" in err
    assert Image.open("found.png").size[0] > 150
    main(["search", "images/blue.png", *arguments])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(" 1.000  images/blue.png") and "(1 new)" in lines[-1]
    main(["search", "a square", "--images", "rows.jsonl", "--model", "clip", "--index", "kept.safetensors"])
    assert "a red square" in capsys.readouterr().out and (place / "kept.safetensors").exists()


def test_classify_gives_shares_of_all_labels(place, capsys):
    main(["classify", "images/red.png", "images/blue.png", "--labels", "a cat, a dog", "--model", "clip"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["images/red.png", "images/blue.png"]
    for line in lines:
        shares = [float(word[:-1]) for word in line.split() if word.endswith("%")]
        assert len(shares) == 2 and sum(shares) == pytest.approx(100, abs=0.2) and "a cat" in line


def test_a_sheet_of_what_training_sees(place, capsys):
    main(["pictures", "--data", "rows.jsonl", "--count", "3", "--out", "sheet.png"])
    assert "3 of 3 pictures" in capsys.readouterr().out and Image.open("sheet.png").size[0] > 250


def test_baseline_of_pictures_prints_chance_beside_it(place, capsys):
    main(["baseline", "rows.jsonl", "--val", "rows.jsonl"])
    out = capsys.readouterr().out
    assert "image_to_text" in out and "chance" in out


def test_export_writes_open_clips_format(place, capsys):
    main(["export", "clip", "again"])
    assert "local-dir" in capsys.readouterr().out and (place / "again" / "open_clip_config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "x", "--model", "nowhere"], "nowhere is neither"),
        (["search", "x", "--images", "nowhere", "--model", "clip"], "nowhere does not exist"),
        (["search", " ", "--model", "clip"], "the query is empty"),
        (["search", "x"], "runs/clip_emoji is not there: train it"),
        (["classify", "images/red.png", "--labels", "one", "--model", "clip"], "name at least two"),
        (["classify", "images/broken.png", "--labels", "a,b", "--model", "clip"], "broken.png is no picture"),
        (["pictures"], "name either the data or a configuration"),
    ],
)
def test_mistakes_get_one_line(place, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
