"""Picture sets of every form, and the stream that is made of them."""

import csv
import io
import json
import tarfile

import pytest
import torch
from PIL import Image

from lightning_gpt.data import ImageTextData
from lightning_gpt.data.picture_baseline import picture_baseline
from lightning_gpt.data.picture_files import read_pictures
from lightning_gpt.data.picture_index import build_index

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0), "yellow": (255, 255, 0)}


def png(colour: str, side: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), COLOURS[colour]).save(stream, "PNG")
    return stream.getvalue()


def tokenize(texts):
    return torch.tensor([[sum(map(ord, text)) % 997, len(text)] for text in texts])


@pytest.fixture
def folder(tmp_path):
    for colour in COLOURS:
        (tmp_path / f"{colour}.png").write_bytes(png(colour))
    return tmp_path


def colours_of(pictures) -> list[str]:
    names = {value: key for key, value in COLOURS.items()}
    return [names[one.open().getpixel((3, 3))] for one in pictures]


def test_one_set_in_every_form_reads_alike(folder):
    rows = [{"image": f"{name}.png", "caption": f"a {name} square", "keywords": [name, "square"]} for name in COLOURS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open(folder / "rows.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, ["image", "caption", "keywords"])
        writer.writeheader()
        writer.writerows({**row, "keywords": "|".join(row["keywords"])} for row in rows)
    import pyarrow
    import pyarrow.parquet

    inside = [{**row, "image": {"bytes": png(name), "path": None}} for row, name in zip(rows, COLOURS)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(inside), folder / "rows.parquet")
    forms = [read_pictures(str(folder / name)) for name in ("rows.jsonl", "rows.csv", "rows.parquet")]
    for pictures in forms:
        assert [one.captions for one in pictures] == [(f"a {name} square",) for name in COLOURS]
        assert [one.keywords for one in pictures] == [(name, "square") for name in COLOURS]
        assert colours_of(pictures) == list(COLOURS)


def test_a_shard_that_webdataset_wrote_reads_in_any_order(folder):
    import webdataset

    with webdataset.TarWriter(str(folder / "set-000.tar")) as shard:
        for number, name in enumerate(COLOURS):
            shard.write(
                {"__key__": f"{number:04}", "png": png(name), "txt": f"a {name} square", "json": {"label": name}}
            )
    pictures = read_pictures(str(folder / "set-000.tar"))
    assert [one.captions[0] for one in pictures] == [f"a {name} square" for name in COLOURS]
    assert [one.label for one in pictures] == list(COLOURS)
    assert colours_of(reversed(pictures)) == list(COLOURS)[::-1]
    (folder / "set-001.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match=r"set-001.tar is damaged"):
        read_pictures(str(folder / "set-001.tar"))


def test_folders_with_text_files_or_a_folder_a_class(tmp_path):
    for name in ("red", "blue"):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{name}.png").write_bytes(png(name))
        (tmp_path / "texts" / f"{name}.txt").write_text(f"it is {name}\n")
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "1.png").write_bytes(png(name))
    assert [one.captions for one in read_pictures(str(tmp_path / "texts"))] == [("it is blue",), ("it is red",)]
    assert [one.label for one in read_pictures(str(tmp_path / "classes"))] == ["blue", "red"]
    with pytest.raises(ValueError, match=r"holds no picture"):
        (tmp_path / "nothing").mkdir()
        read_pictures(str(tmp_path / "nothing"))
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(ValueError, match=r"empty.tar holds no picture"):
        read_pictures(str(tmp_path / "empty.tar"))


@pytest.fixture
def data(folder, as_lines):
    def make(**settings) -> ImageTextData:
        rows = [
            {"image": f"{name}.png", "caption": f"a {name} square", "keywords": [name, "square", "flat"]}
            for name in COLOURS
        ]
        table = as_lines(folder / "train.jsonl", rows)
        made = ImageTextData(str(table), str(table), batch_size=2, seed=3, **settings)
        made.use_towers(tokenize, {"size": 8})
        return made

    return make


def test_the_stream_is_the_same_from_any_process_and_from_any_point(data):
    whole = []
    for workers in (0, 2):
        loader = data(num_workers=workers, keyword_captions=0.5, augmentation={"scale": [0.5, 1.0]}).train_dataloader()
        batches = [batch for _ in range(3) for batch in loader]
        assert len(batches) == 9
        whole.append(batches)
    for one, other in zip(*whole, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("images", "texts", "index"))
    again = data(num_workers=0, keyword_captions=0.5, augmentation={"scale": [0.5, 1.0]})
    again.load_state_dict({"consumed_samples": 8, "seed": 3, "fingerprint": again.fingerprint})
    rest = list(again.train_dataloader())
    assert torch.equal(rest[0]["images"], whole[0][4]["images"])
    assert sorted(int(i) for batch in whole[0][:5] for i in batch["index"])[:5] != [0] * 5
    epoch = [int(i) for batch in whole[0] for i in batch["index"]][:5]
    assert sorted(epoch) == [0, 1, 2, 3, 4]


def test_opening_pictures_leaves_the_global_generators_alone(data):
    loader = iter(data(num_workers=0).train_dataloader())
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    next(loader)
    assert torch.equal(torch.rand(2), expected)


def test_broken_pictures_are_replaced_in_training_left_out_in_validation_and_counted(data, folder):
    (folder / "green.png").write_bytes(b"not a picture")
    made = data(num_workers=0)
    with pytest.warns(UserWarning, match=r"pictures left out so far: 1, the last: .*green.png is no picture"):
        batches = list(made.train_dataloader())
    assert all(len(batch["images"]) == 2 for batch in batches)
    assert 1 not in {int(i) for batch in batches for i in batch["index"]}
    (loader,) = made.val_dataloader()
    with pytest.warns(UserWarning, match="left out"):
        assert sorted(int(i) for batch in loader for i in batch["index"]) == [0, 2, 3, 4]
    with pytest.raises(ValueError, match=r"train.jsonl:2: .*green.png is no picture.*skip leaves"):
        list(data(num_workers=0, invalid="error").train_dataloader())


def test_rows_without_words_or_files_are_told(data, folder, as_lines):
    table = as_lines(
        folder / "odd.jsonl",
        [
            {"image": "red.png", "caption": "red"},
            {"image": "blue.png", "caption": " "},
            {"image": "gone.png", "caption": "x"},
        ],
    )
    made = ImageTextData(str(table))
    with pytest.warns(
        UserWarning, match=r"2 of 3 pictures of train left out, the first: .*odd.jsonl:2: has not a caption"
    ):
        assert len(made.pictures("train")) == 1
    with pytest.raises(ValueError, match=r"odd.jsonl:2"):
        ImageTextData(str(table), invalid="error").pictures("train")
    with pytest.raises(ValueError, match=r"data.keyword_captions=2"):
        ImageTextData(str(table), keyword_captions=2)


def test_captions_are_drawn_of_name_and_keywords(data):
    made = data(keyword_captions=1.0)
    one = made.pictures("train")[0]
    drawn = {made.caption(one, torch.Generator().manual_seed(seed)) for seed in range(60)}
    words = {"a red square", "red", "square", "flat"}
    assert all(set(text.split(", ")) <= words for text in drawn) and len(drawn) > 10
    assert made.caption(one) == "a red square"
    assert data(val_keywords=2).caption(one) == "a red square, red, square"


def test_an_index_embeds_only_what_is_new(folder, tmp_path):
    calls = []

    def embed(pictures):
        calls.append(len(pictures))
        rows = torch.tensor([[float(value) for value in one.getpixel((0, 0))] for one in pictures]) + 1
        return torch.nn.functional.normalize(rows, dim=1)

    (folder / "odd.png").write_bytes(b"broken")
    path = tmp_path / "index.safetensors"
    first = build_index(read_pictures(str(folder)), embed, path, "model")
    assert first.embedded == 6 and len(first.pictures) == 5 and "odd.png" in first.left_out[0]
    (folder / "red.png").write_bytes(png("blue", side=20))
    second = build_index(read_pictures(str(folder)), embed, path, "model")
    assert sum(calls) == 6 and len(second.pictures) == 5
    red = torch.tensor([1.0, 0.0, 0.0])
    assert second.nearest(red, 1)[0][0].source.name == "yellow.png"
    assert first.nearest(red, 1)[0][0].source.name == "red.png"
    build_index(read_pictures(str(folder)), embed, path, "another model")
    assert sum(calls) == 11
    path.write_bytes(b"damaged")
    assert len(build_index(read_pictures(str(folder)), embed, path, "model").pictures) == 5


def test_the_baseline_finds_colours_by_their_words(folder, as_lines):
    train = [{"image": f"{name}.png", "caption": f"{name} thing {n}"} for n in range(20) for name in COLOURS]
    val = [{"image": f"{name}.png", "caption": f"{name} object"} for name in COLOURS]
    found = picture_baseline(str(as_lines(folder / "t.jsonl", train)), str(as_lines(folder / "v.jsonl", val)))
    assert found["image_to_text_r1"] == found["text_to_image_r1"] == 1.0
