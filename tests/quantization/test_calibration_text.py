import math

import pytest
import torch

from lightning_gpt.evaluation.perplexity import perplexity
from lightning_gpt.evaluation.scoring import Scorer
from lightning_gpt.hub import load_model
from lightning_gpt.quantization.calibration import BUILTIN, calibration_ids, read_ids
from lightning_gpt.text.byte import byte_tokenizer
from lightning_gpt.text.char import char_tokenizer
from lightning_gpt.text.tokenizer import Tokenizer

TEXT = "".join(f"{number:05d} " for number in range(500))  # 3,000 bytes, no window like another
BYTES = byte_tokenizer(end_of_text=True)


@pytest.fixture
def text_file(tmp_path):
    (tmp_path / "numbers.txt").write_text(TEXT)
    return str(tmp_path / "numbers.txt")


def test_windows_are_of_the_text_and_do_not_overlap(text_file):
    ids = calibration_ids(text_file, BYTES, 10, 60, 64, seed=0)
    assert ids.shape == (10, 60)
    assert ids.dtype == torch.int64
    places = [TEXT.index(BYTES.decode(row.tolist())) for row in ids]
    assert all(place % 60 == 0 for place in places)
    assert len(set(places)) == 10
    assert torch.equal(ids, calibration_ids(text_file, BYTES, 10, 60, 64, seed=0))
    assert not torch.equal(ids, calibration_ids(text_file, BYTES, 10, 60, 64, seed=1))


def test_texts_that_are_too_short_say_what_is_needed(text_file):
    with pytest.raises(
        ValueError, match=r"too short: 3,001 tokens where samples=64 of tokens=60 need 3,840.*--samples 50"
    ):
        calibration_ids(text_file, BYTES, 64, 60, 64)
    with pytest.raises(ValueError, match=r"--tokens 3001"):
        calibration_ids(text_file, BYTES, 1, 4000, 4096)


def test_bad_numbers_are_refused(text_file):
    with pytest.raises(ValueError, match="tokens=65 is longer than the model's block_size=64"):
        calibration_ids(text_file, BYTES, 1, 65, 64)
    with pytest.raises(ValueError, match="samples=0 must be at least 1"):
        calibration_ids(text_file, BYTES, 0, 60, 64)


def test_the_text_that_is_always_there_is_long_enough():
    ids = calibration_ids(BUILTIN, BYTES, 128, 512, 1024)
    assert ids.shape == (128, 512)
    read = BYTES.decode(read_ids(BUILTIN, BYTES, "train", 300_000).tolist())
    assert "assert_stmt" in read  # Python's reference
    assert "Virginity, like an old courtier" in read  # and the first of the plays


def test_a_text_the_model_cannot_read_is_refused():
    with pytest.raises(ValueError, match=r"text builtin: .*--calibration takes another text"):
        calibration_ids(BUILTIN, char_tokenizer("abc"), 2, 16, 64)
    with pytest.raises(ValueError, match="no tokenizer"):
        calibration_ids(BUILTIN, None, 2, 16, 64)


def test_prepared_directories_give_their_parts(corpus):
    tokenizer = Tokenizer.from_json((corpus / "tokenizer.json").read_text())
    train, val = (tokenizer.decode(read_ids(str(corpus), tokenizer, split, 500).tolist()) for split in ("train", "val"))
    assert len(train) == len(val) == 500
    assert train != val
    assert calibration_ids(str(corpus), None, 4, 16, 16).shape == (4, 16)
    with pytest.raises(ValueError, match="another tokenizer"):
        calibration_ids(str(corpus), BYTES, 4, 16, 16)


def test_perplexity_is_that_of_the_windows_tokens(tiny_model):
    net, tokenizer = load_model(tiny_model)
    ids = tokenizer.encode("Shall I compare thee to a summer's day?")
    scorer = Scorer(net, say=False)
    prefix = tokenizer.eos_id
    with torch.no_grad():
        logits = net(torch.tensor([[prefix, *ids[:-1]]]))[0]
        expected = math.exp(torch.nn.functional.cross_entropy(logits, torch.tensor(ids)))
    assert perplexity(scorer, ids, prefix) == pytest.approx(expected, rel=1e-4)
