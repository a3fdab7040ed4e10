import pytest


@pytest.fixture
def nasty_texts() -> list[str]:
    """Texts that break careless tokenizers."""
    return [
        "",
        " ",
        "  two  spaces,   three",
        " leading and trailing ",
        "tab\there\t\ttwo",
        "line\nline\n\nline\n",
        "lone\rcarriage\r\nreturn\r",
        "\n  indented\n\tindented\n\n\n",
        "e\u0301 and \u00e9 are two spellings",
        "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
        "שלום עולם \u202bمرحبا\u202c",
        "NUL \x00 and bell \x07 and delete \x7f",
        "private \ue000 \U000f0000, last \U0010ffff, BOM \ufeff",
        "\u2028line separator\u2029 nbsp\u00a0zero\u200bwidth \u3000ideographic",
        "## Heading ##piece ##",
        "‿ ▁ Ġ Ċ <unk> [UNK]",
        "<|endoftext|> </s> <s> are only text",
        "don't DON'T I'll we've 'tis ſ'ſ",
        "1234567 12.5e-3 ½ ² ٣",
        "漢字かな交じり文 한국어 ไทย हिन्दी",
        "x" * 500,
        "a.\n/b c...\n\nd!!!\r\n\r\ne",
        "ß ﬁ ŉ İ ı ǰ",
    ]


@pytest.fixture
def same_as_transformers(tmp_path):
    """Checks that transformers loads the saved file with the same ids and the same text back."""
    from transformers import PreTrainedTokenizerFast

    def check(tokenizer, texts):
        path = tmp_path / "tokenizer.json"
        path.write_text(tokenizer.to_json(), encoding="utf-8")
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(path))
        for text in texts:
            ids = tokenizer.encode(text)
            if "<|endoftext|>" not in text:
                assert theirs(text)["input_ids"] == ids, text
            assert theirs.decode(ids) == tokenizer.decode(ids), text

    return check
