"""Rows of files: reading, shapes, masks, packing, batches."""

import gzip
import json
import random

import pytest
import torch

from lightning_gpt.data import InstructionData, LabelledData, PreferenceData, PromptData, StepData
from lightning_gpt.data.packing import pack
from lightning_gpt.data.row_files import read_rows
from lightning_gpt.text.byte import byte_tokenizer

END = 256


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def ready(data, block_size=64):
    data.use_model(byte_tokenizer(end_of_text=True), block_size)
    return data


def words(ids) -> str:
    return byte_tokenizer(end_of_text=True).decode([token for token in ids if token >= 0])


def learnt(batch, row=0) -> str:
    targets = batch["targets"][row]
    return words(targets[targets >= 0].tolist())


def test_all_kinds_of_files_give_the_same_rows(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": "é?", "n": number} for number in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "b.json").write_text(json.dumps(rows))
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.json", "c.jsonl.gz", "d.parquet"):
        assert [row for _, row in read_rows(str(tmp_path / name))] == rows
    assert len(read_rows(str(tmp_path))) == 12
    assert read_rows(str(tmp_path / "a.jsonl"), limit=2)[1][0].endswith("a.jsonl:2")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": ', "a.jsonl:2 is not JSON"),
        ("a.jsonl", "[1]\n", "holds a list, not a row"),
        ("a.json", '{"a": 1}', "must hold a list of rows"),
        ("a.parquet", "x", "is not a parquet file"),
        ("a.csv", "x", "rows are read from .jsonl, .json, .parquet"),
        ("a.jsonl", "", "has no rows"),
    ],
)
def test_bad_files(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        read_rows(str(tmp_path / name))
    with pytest.raises(ValueError, match="does not exist"):
        read_rows(str(tmp_path / "none.jsonl"))


def test_instructions_of_every_shape(write):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    path = write(
        {"messages": talk},
        {"prompt": "two", "completion": " three"},
        {"prompt": talk[:1], "completion": talk[1:]},
        {"text": "plain"},
    )
    data = ready(InstructionData(path, batch_size=4))
    batch = data.collate(data.examples("train"))
    assert [learnt(batch, row) for row in range(4)] == [
        "yo<|endoftext|>",
        " three<|endoftext|>",
        "yo<|endoftext|>",
        "lain<|endoftext|>",  # the first token has nothing before it
    ]
    assert words(batch["input_ids"][1][:9].tolist()) == "two three"
    assert batch["input_ids"].shape == (4, 32) and int(batch["num_tokens"]) == sum(
        len(row[0].ids) - 1 for row in data.examples("train")
    )
    everything = ready(InstructionData(path, learn_from="all"))
    assert learnt(everything.collate(everything.examples("train")), 1) == "wo three<|endoftext|>"
    asked = ready(InstructionData(path, as_chat=True, limit=2))
    assert learnt(asked.collate(asked.examples("train")), 1) == " three<|endoftext|>"
    assert words(asked.examples("train")[1][0].ids).startswith("User: two\nAssistant: ")


def test_pairs_and_their_prompt(write):
    path = write(
        {"prompt": "q", "chosen": " good", "rejected": " bad", "margin": 0.5},
        {"chosen": "\n\nHuman: x\n\nAssistant: yes", "rejected": "\n\nHuman: x\n\nAssistant: yet no"},
        {
            "chosen": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "b"}],
        },
    )
    data = ready(PreferenceData(path))
    batch = data.collate(data.examples("train"))
    assert [learnt(batch, row) for row in range(6)] == [
        " good<|endoftext|>",
        " yes<|endoftext|>",
        "a<|endoftext|>",
        " bad<|endoftext|>",
        " yet no<|endoftext|>",
        "b<|endoftext|>",
    ]
    assert batch["margins"].tolist() == [0.5, 0, 0] and batch["index"].tolist() == [0, 1, 2]


def test_labelled_answers_meet_other_prompts(write):
    data = ready(
        LabelledData(
            write(
                {"prompt": "q", "chosen": " a", "rejected": " b"}, {"prompt": "r", "completion": " c", "label": False}
            )
        )
    )
    batch = data.collate(data.examples("train"))
    assert batch["labels"].tolist() == [True, False, False]
    assert [learnt(batch, row) for row in range(3)] == [f" {x}<|endoftext|>" for x in "abc"]
    mismatched = {"targets": batch["mismatched_targets"]}
    assert [learnt(mismatched, row) for row in range(3)] == [f" {x}<|endoftext|>" for x in "bca"]


def test_steps_carry_labels_at_their_last_token(write):
    row = {"prompt": "1+1+1", "completions": ["1+1=2", "2+1=4", "so 4"], "labels": [True, False, False]}
    data = ready(StepData(write(row)))
    batch = data.collate(data.examples("train"))
    places = (batch["targets"][0] >= 0).nonzero()[:, 0].tolist()
    assert [words(batch["input_ids"][0][: place + 1].tolist()) for place in places] == [
        "1+1+11+1=2\n",
        "1+1+11+1=2\n2+1=4\n",
        "1+1+11+1=2\n2+1=4\nso 4\n",
    ]
    assert batch["targets"][0][places].tolist() == [1, 0, 0]
    short = ready(StepData(write(row), until_wrong=True))
    assert [label for label in short.examples("train")[0][1] if label >= 0] == [1, 0]


def test_prompts_keep_their_columns(write):
    data = ready(PromptData(write({"prompt": "2+2=", "answer": 4}, {"prompt": "x" * 100, "hint": "h"})))
    with pytest.warns(UserWarning, match="1 prompts of train were shortened to 64 tokens"):
        batch = data.collate(data.examples("train"))
    assert batch["columns"] == {"answer": [4, None], "hint": [None, "h"]}
    assert [len(ids) for ids in batch["prompts"]] == [4, 64] and batch["texts"][0] == "2+2="


def test_long_rows_lose_the_prompts_beginning_then_the_answers_end(write):
    path = write({"prompt": "p" * 60, "completion": "c" * 20}, {"prompt": "q" * 9, "completion": "d" * 90})
    data = ready(InstructionData(path))
    with pytest.warns(UserWarning) as said:
        batch = data.collate(data.examples("train"))
    assert batch["input_ids"].shape == (2, 64)
    assert learnt(batch, 0) == "c" * 20 + "<|endoftext|>" and words(batch["input_ids"][0].tolist()).startswith(
        "p" * 44 + "c"
    )
    assert learnt(batch, 1) == "d" * 56 and words(batch["input_ids"][1].tolist()).startswith("q" * 9 + "d")
    assert {str(one.message).split(" were")[0] for one in said} >= {"1 prompts of train", "1 answers of train"}


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        (InstructionData, {"prompt": "a", "completion": "  "}, "completion is empty"),
        (InstructionData, {"messages": [{"role": "user", "content": "x"}]}, "no token is left to learn from"),
        (InstructionData, {"body": "x"}, "the row has body, wanted is text, messages, or prompt and completion"),
        (InstructionData, {"messages": "x"}, "messages must be a list of messages"),
        (PreferenceData, {"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        (
            PreferenceData,
            {"prompt": "a", "chosen": "b" * 80 + "x", "rejected": "b" * 80 + "y"},
            "the same within max_length",
        ),
        (PreferenceData, {"prompt": "a", "chosen": ""}, "wanted is prompt, chosen and rejected"),
        (LabelledData, {"prompt": "a", "completion": "b"}, "wanted is prompt, completion and label"),
        (StepData, {"prompt": "a", "completions": ["b"], "labels": [1, 0]}, "one label a step"),
        (StepData, {"prompt": "a", "completions": [" "], "labels": [1]}, "an empty step"),
        (PromptData, {"text": "a"}, "wanted is prompt"),
    ],
)
def test_rows_that_cannot_be_used_are_named_or_skipped(write, kind, row, words):
    good = {
        "prompt": "a",
        "completion": "b",
        "chosen": "b",
        "rejected": "c",
        "label": True,
    }
    if kind is StepData:
        good = {"prompt": "a", "completions": ["b"], "labels": [True]}
    path = write(good, row)
    with pytest.raises(ValueError, match=rf"rows.jsonl:2: .*{words}"):
        ready(kind(path)).examples("train")
    lenient = ready(kind(path, invalid="skip"))
    with pytest.warns(UserWarning, match="1 of 2 rows left out"):
        assert lenient.examples("train")


def test_a_tokenizer_without_an_end_is_refused(write):
    data = InstructionData(write({"prompt": "a", "completion": "b"}))
    data.use_model(byte_tokenizer(), 64)
    with pytest.raises(ValueError, match="no end-of-text token"):
        data.examples("train")


def test_packing_loses_nothing_and_wastes_little():
    draw = random.Random(0)
    lengths = [draw.randint(1, 30) for _ in range(500)]
    rows = pack(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(500))
    assert max(sum(lengths[index] for index in row) for row in rows) <= 64
    assert len(rows) <= 1.03 * sum(lengths) / 64 + 1


def test_the_stream_is_every_row_once_an_epoch_and_resumes(write):
    rows = [{"prompt": str(number), "completion": "x"} for number in range(10)]
    path = write(*rows)
    data = ready(InstructionData(path, batch_size=3, seed=5))
    loader = data.train_dataloader()
    assert len(loader) == 4

    def prompts(batches):
        return [words(row.tolist()).split("x")[0] for batch in batches for row in batch["input_ids"]]

    first = prompts(list(loader) + list(loader) + list(loader))
    assert sorted(first[:10]) == sorted(first[10:20]) == sorted(map(str, range(10))) and first[:10] != first[10:20]
    again = ready(InstructionData(path, batch_size=3, seed=5))
    again.load_state_dict({"consumed_samples": 9, "seed": 5, "fingerprint": data.fingerprint})
    assert prompts(list(again.train_dataloader())) == first[9:21]
    other = ready(InstructionData(write(*rows[:9], name="other.jsonl"), batch_size=3))
    other.load_state_dict({"consumed_samples": 9, "fingerprint": data.fingerprint})
    with pytest.raises(ValueError, match="holds another corpus"):
        other.train_dataloader()


def test_validation_is_every_row_once(write):
    rows = [{"prompt": str(number), "completion": "x"} for number in range(10)]
    data = ready(InstructionData(write(*rows), val_fraction=0.5, batch_size=2))
    found = [words(row.tolist())[0] for batch in data.val_dataloader() for row in batch["input_ids"]]
    assert found == list("56789")
    empty = data.collate([])
    assert (empty["targets"] == -100).all() and isinstance(empty["input_ids"], torch.Tensor)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "data.batch_size=0 must be at least 1"),
        ({"max_length": 65}, "beyond the model's context of 64"),
        ({"val": "x", "val_fraction": 0.1}, "exclude each other"),
        ({"val_fraction": 1.0}, "0 or more and below 1"),
        ({"tokenizer": "gpt2"}, "another tokenizer than the model's"),
    ],
)
def test_bad_settings(write, settings, words):
    with pytest.raises(ValueError, match=words):
        ready(InstructionData(write({"text": "x"}), **settings))
