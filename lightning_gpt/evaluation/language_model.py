"""Our network behind lm-evaluation-harness's interface. Legend: N requests, T tokens, V vocabulary."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from lightning_gpt.inference import SamplingConfig, generate_text
from lightning_gpt.nn import GPT
from lightning_gpt.text.chat import ChatTemplate
from lightning_gpt.text.tokenizer import Tokenizer


class Scorer:
    """log p of continuations and texts, in batches of about equal length.

    Args:
        net: in evaluation mode.
        batch_tokens: tokens of a forward pass, filling included.
        autocast: type of the matrix products; None = that of the weights.
        say: prints progress.
    """

    def __init__(
        self, net: GPT, batch_tokens: int = 8192, autocast: torch.dtype | None = None, say: bool = True
    ) -> None:
        self.net, self.batch_tokens, self.autocast, self.say = net, batch_tokens, autocast, say
        self.limit = net.config.block_size

    def _precision(self) -> Any:
        device = self.net.token_embedding.weight.device.type
        return nullcontext() if self.autocast is None else torch.autocast(device, self.autocast)

    @torch.inference_mode()
    def continuations(self, requests: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """(log p of the continuation, whether greedy decoding would write it) of each (context, continuation).

        Requests with the same tokens before their last one, such as the letters of one question, share a pass. What is
        longer than the network's context loses its beginning.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (context, continuation) in enumerate(requests):
            inputs = (context + continuation)[-(self.limit + 1) :][:-1]
            groups.setdefault(tuple(inputs), []).append(number)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for batch in self._batches(sorted(groups, key=len, reverse=True)):
            longest = len(batch[0])
            device = self.net.token_embedding.weight.device
            ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in batch], device=device)
            with self._precision():
                hidden = self.net.hidden(ids)
                for row, inputs in enumerate(batch):
                    members = groups[inputs]
                    scored = max(len(requests[number][1]) for number in members)
                    scored = min(scored, len(inputs))
                    logits = self.net.logits(hidden[row, len(inputs) - scored : len(inputs)]).float()
                    log_p, best = torch.log_softmax(logits, -1), logits.argmax(-1)
                    for number in members:
                        targets = torch.tensor(requests[number][1][-scored:], device=device)
                        here = log_p[len(log_p) - len(targets) :].gather(1, targets[:, None]).sum()
                        greedy = bool((best[len(best) - len(targets) :] == targets).all())
                        found[number] = (float(here), greedy)
        return found

    def _batches(self, rows: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        began = told = time.monotonic()
        total, done, start = sum(map(len, rows)), 0, 0
        while start < len(rows):
            size = max(1, self.batch_tokens // max(len(rows[start]), 1))
            batch = rows[start : start + size]
            yield batch
            start += size
            done += sum(map(len, batch))
            now = time.monotonic()
            if self.say and (now - told > 10):
                told = now
                left = (now - began) / done * (total - done)
                print(f"scored {start:,} of {len(rows):,} texts, {left:.0f} s left", file=sys.stderr, flush=True)

    def rolling(self, texts: Sequence[list[int]], prefix: int) -> list[float]:
        """log p of whole texts, each token seen with as much context as fits: windows of the network's context, the
        first behind `prefix`, each later one behind the token before it, the last with all the context it can have."""
        requests, owners = [], []
        for number, ids in enumerate(texts):
            for start in range(0, len(ids), self.limit):
                end = min(start + self.limit, len(ids))
                before = [prefix] if start == 0 else ids[end - self.limit - 1 : start]
                requests.append((before, ids[start:end]))
                owners.append(number)
        totals = [0.0] * len(texts)
        for owner, (value, _) in zip(owners, self.continuations(requests)):
            totals[owner] += value
        return totals

    def answers(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        stops: Sequence[str],
        tokens: int,
        temperature: float,
        batch: int,
    ) -> list[str]:
        """Continuations up to the first of `stops`; prompts longer than the context lose their beginning."""
        room = max(self.limit - tokens, 1)
        texts = [""] * len(prompts)
        lengths = [len(tokenizer.encode(prompt)) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lengths.__getitem__, reverse=True)
        began = told = time.monotonic()
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            asked = [
                prompts[n] if lengths[n] <= room else tokenizer.decode(tokenizer.encode(prompts[n])[-room:])
                for n in some
            ]
            with self._precision():
                pieces = generate_text(self.net, tokenizer, asked, tokens, SamplingConfig(temperature), stops)
                for piece in pieces:
                    texts[some[piece.row]] += piece.text
            if self.say and time.monotonic() - told > 10:
                told, done = time.monotonic(), start + len(some)
                left = (told - began) / done * (len(order) - done)
                print(f"answered {done:,} of {len(order):,} prompts, {left:.0f} s left", file=sys.stderr, flush=True)
        return texts


def language_model(
    net: GPT, tokenizer: Tokenizer, scorer: Scorer, batch_size: int = 16, max_new_tokens: int = 256
) -> Any:
    """The network as an lm_eval.api.model.TemplateLM.

    Raises:
        ValueError: lm-eval is not installed.
    """
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError:
        raise ValueError("evaluations need lm-eval: pip install 'lightning_gpt[eval]'") from None

    class LanguageModel(TemplateLM):
        """Tokens by our tokenizer, numbers by Scorer."""

        tokenizer_name = "lightning_gpt"

        @property
        def eot_token_id(self) -> int:
            """What stands before a text without context: LLaMA's <s>, GPT-2's <|endoftext|>."""
            found = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
            return 0 if found is None else found

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            ids = tokenizer.encode(string, allow_special=self.chatting)
            return ids if add_special_tokens is False or self.chatting else [*tokenizer.prefix_ids, *ids]

        chatting = False

        def _loglikelihood_tokens(self, requests: list, **kwargs: Any) -> list[tuple[float, bool]]:
            return scorer.continuations([(context, continuation) for _, context, continuation in requests])

        def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
            texts = [tokenizer.encode(request.args[0]) for request in requests]
            return scorer.rolling(texts, self.eot_token_id)

        def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
            found: list[str] = [""] * len(requests)
            kinds: dict[str, list[int]] = {}
            for number, request in enumerate(requests):
                kinds.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(number)
            for numbers in kinds.values():
                settings = requests[numbers[0]].args[1]
                until = settings.get("until", [])
                stops = [until] if isinstance(until, str) else list(until)
                temperature = float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0
                length = int(settings.get("max_gen_toks", max_new_tokens))
                prompts = [requests[number].args[0] for number in numbers]
                said = scorer.answers(tokenizer, prompts, stops, length, temperature, batch_size)
                for number, text in zip(numbers, said):
                    found[number] = text
            return found

        def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
            self.chatting = True
            return ChatTemplate(tokenizer).render(chat_history, add_generation_prompt)

    return LanguageModel()


def bits_per_byte(scorer: Scorer, tokenizer: Tokenizer, text: str) -> tuple[float, int]:
    """Of a text, and its bytes."""
    prefix = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    total = scorer.rolling([tokenizer.encode(text)], prefix or 0)[0]
    size = len(text.encode("utf-8"))
    return -total / torch.log(torch.tensor(2.0)).item() / max(size, 1), size
