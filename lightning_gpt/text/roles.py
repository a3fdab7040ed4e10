"""What a published model says of its tokens beside tokenizer.json: which one begins, ends or fills a text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

END_OF_TEXT = "<|endoftext|>"
"""The special token that our own schemes put after a document."""

# Names that published tokenizers use, the commonest meaning first.
COMMON_NAMES = {
    "bos": ("<s>", "<|begin_of_text|>", "<|startoftext|>", "<|im_start|>", "<bos>", "[CLS]"),
    "eos": (END_OF_TEXT, "</s>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<eos>", "[SEP]"),
    "pad": ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>"),
    "unk": ("<unk>", "[UNK]", "<|unk|>"),
}


@dataclass(frozen=True)
class Roles:
    """Tokens by their part; None = by its name, if it has a common one."""

    bos: str | None = None
    """Begins a text."""
    eos: str | None = None
    """Ends a text."""
    pad: str | None = None
    """Fills rows up."""
    unk: str | None = None
    """Stands for what the vocabulary lacks."""
    end_ids: tuple[int, ...] = ()
    """Tokens beside eos that end a generated text (LLaMA 3 has two)."""
    chat_template: str | None = None
    """Jinja template that writes messages as text, in transformers' form."""

    @classmethod
    def from_files(
        cls, tokenizer_config: Mapping[str, Any], generation_config: Mapping[str, Any], chat_template: str | None = None
    ) -> "Roles":
        """From the content of tokenizer_config.json, generation_config.json and chat_template.jinja.

        Args:
            tokenizer_config: token names may be texts or, in older files, objects with their `content`.
            generation_config: eos_token_id is a number or a list.
            chat_template: None = the one in tokenizer_config, if any.
        """
        named = {part: tokenizer_config.get(f"{part}_token") for part in COMMON_NAMES}
        names = {part: name.get("content") if isinstance(name, Mapping) else name for part, name in named.items()}
        ends = generation_config.get("eos_token_id")
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        if chat_template is None and isinstance(tokenizer_config.get("chat_template"), str):
            chat_template = tokenizer_config["chat_template"]
        return cls(**names, end_ids=tuple(ends), chat_template=chat_template)

    def find(self, special_tokens: Mapping[str, int]) -> dict[str, int | None]:
        """Part -> id among a tokenizer's special tokens."""
        given = {part: special_tokens.get(getattr(self, part)) for part in COMMON_NAMES}
        common = {
            part: next((special_tokens[name] for name in names if name in special_tokens), None)
            for part, names in COMMON_NAMES.items()
        }
        return {part: common[part] if given[part] is None else given[part] for part in COMMON_NAMES}
