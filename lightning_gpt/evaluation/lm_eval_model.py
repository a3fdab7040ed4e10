"""Our network behind lm-evaluation-harness's interface."""

from __future__ import annotations

import math
from typing import Any

from lightning_gpt.evaluation.answering import answer
from lightning_gpt.evaluation.scoring import Scorer
from lightning_gpt.inference import SamplingConfig
from lightning_gpt.nn import GPT
from lightning_gpt.text.chat import ChatTemplate
from lightning_gpt.text.tokenizer import Tokenizer

MAX_NEW_TOKENS = 256
"""Where a task does not say: lm-eval's own default."""


def first_id(tokenizer: Tokenizer) -> int:
    """What stands before a text without context: LLaMA's <s>, GPT-2's <|endoftext|>."""
    found = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    return 0 if found is None else found


def sampling_of(settings: dict[str, Any]) -> SamplingConfig:
    """A request's generation settings in transformers' names: without do_sample or at temperature 0 greedy."""
    if not settings.get("do_sample", False) or float(settings.get("temperature", 1.0)) == 0:
        return SamplingConfig(temperature=0.0)
    top_k, top_p = settings.get("top_k"), settings.get("top_p")
    return SamplingConfig(
        float(settings.get("temperature", 1.0)), int(top_k) if top_k else None, float(top_p) if top_p else None
    )


def language_model(net: GPT, tokenizer: Tokenizer, scorer: Scorer, batch_size: int = 16, seed: int = 0) -> Any:
    """The network as an lm_eval.api.model.TemplateLM, whose answers are those of lm-eval's own model of transformers.

    Args:
        net: in evaluation mode.
        tokenizer: its tokenizer.
        scorer: around the network.
        batch_size: prompts side by side where text is generated.
        seed: of drawn answers.

    Raises:
        ValueError: lm-eval is not installed.
    """
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError:
        raise ValueError("evaluations need lm-eval: pip install 'lightning_gpt[eval]'") from None

    class LanguageModel(TemplateLM):
        """Tokens by our tokenizer, numbers by Scorer, texts by `answer`."""

        tokenizer_name = f"lightning_gpt {tokenizer.fingerprint[:16]}"
        chatting = False
        """Texts are written by a chat template, whose special tokens count."""

        @property
        def eot_token_id(self) -> int:
            return first_id(tokenizer)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            ids = tokenizer.encode(string, allow_special=self.chatting)
            return ids if add_special_tokens is False or self.chatting else [*tokenizer.prefix_ids, *ids]

        def _loglikelihood_tokens(self, requests: list, **kwargs: Any) -> list[tuple[float, bool]]:
            return scorer.continuations([(context, continuation) for _, context, continuation in requests])

        def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
            texts = [tokenizer.encode(request.args[0]) for request in requests]
            return scorer.rolling(texts, self.eot_token_id)

        def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
            found = [""] * len(requests)
            kinds: dict[str, list[int]] = {}
            for number, request in enumerate(requests):
                kinds.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(number)
            for numbers in kinds.values():
                settings = requests[numbers[0]].args[1]
                until = settings.get("until", [])
                length, context = int(settings.get("max_gen_toks", MAX_NEW_TOKENS)), net.config.block_size
                said = answer(
                    net,
                    tokenizer,
                    [self.tok_encode(requests[number].args[0]) or [self.eot_token_id] for number in numbers],
                    length if length < context else max(context // 2, 1),  # leave room for a prompt
                    [until] if isinstance(until, str) else list(until or []),
                    sampling_of(settings),
                    ChatTemplate(tokenizer).end_ids if self.chatting else (),
                    batch_size,
                    seed,
                    "prompts" if scorer.say else None,
                )
                for number, text in zip(numbers, said):
                    found[number] = text
            return found

        def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
            self.chatting = True
            text = ChatTemplate(tokenizer).render(chat_history, add_generation_prompt)
            if add_generation_prompt:
                return text
            # The last message is the beginning of the answer: it stays open.
            said = chat_history[-1]["content"]
            return text[: text.rindex(said) + len(said)]

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return ChatTemplate(tokenizer).source if chat_template else None

    return LanguageModel()


def bits_per_byte(scorer: Scorer, tokenizer: Tokenizer, text: str) -> tuple[float, int]:
    """Of a text, each token seen with as much of what stands before it as the context holds; and its bytes."""
    total = scorer.rolling([tokenizer.encode(text)], first_id(tokenizer))[0]
    size = len(text.encode("utf-8"))
    return -total / math.log(2) / max(size, 1), size
