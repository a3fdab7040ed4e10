"""Text to tokens and back for a version of a model, in the gateway: the model's core has other things to do."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gpt.serving.api_types import ChatMessage
from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.messages import Chance, Hello
from lightning_gpt.text.chat import ChatTemplate
from lightning_gpt.text.prompts import prompt_ids
from lightning_gpt.text.tokenizer import Tokenizer


class Codec:
    """Encodes prompts and conversations, and writes single tokens.

    Args:
        hello: what a worker said of its model.
        chat_template: Jinja source, chatml or plain; None = the model's own.
    """

    def __init__(self, hello: Hello, chat_template: str | None = None) -> None:
        self.tokenizer = Tokenizer.from_json(hello.tokenizer, hello.roles)
        self.template = ChatTemplate(self.tokenizer, chat_template)
        self.vocab_size = hello.vocab_size
        self._texts: dict[int, str] = {}

    def prompt(self, prompt: str | Sequence[int], field: str = "prompt") -> list[int]:
        """Ids of a text, or the ids that were given.

        Raises:
            ApiError: 400, a character or a token that the vocabulary lacks.
        """
        if not isinstance(prompt, str):
            wrong = next((token for token in prompt if token >= self.vocab_size), None)
            if wrong is not None:
                raise ApiError(
                    400,
                    f"{field} has the token {wrong}, the vocabulary ends at {self.vocab_size - 1}",
                    field,
                    "invalid_value",
                )
            return list(prompt)
        try:
            return prompt_ids(self.tokenizer, prompt, self.vocab_size)
        except ValueError as error:
            raise ApiError(400, f"{field}: {error}", field, "invalid_value") from None

    def chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Ids of a conversation, up to where the assistant begins to speak.

        Raises:
            ApiError: 400, the template or the vocabulary refuses it.
        """
        turns = [{"role": "system" if one.role == "developer" else one.role, "content": one.text} for one in messages]
        try:
            return self.template.prompt_ids(turns)
        except ValueError as error:
            raise ApiError(400, f"messages: {error}", "messages", "invalid_value") from None

    def token_text(self, token: int) -> str:
        """One token as people read it; bytes that are no characters by themselves as bytes:\\xf0\\x9f, as OpenAI does,
        so that no two are written alike."""
        found = self._texts.get(token)
        if found is None:
            found = self._texts[token] = self._written(token)
        return found

    def _written(self, token: int) -> str:
        if token >= self.tokenizer.vocab_size:
            return f"<{token}>"
        if self.tokenizer.joins_bytes:
            raw = self.tokenizer.token_bytes(token)
            try:
                return raw.decode()
            except UnicodeDecodeError:
                return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        return self.tokenizer.token_text(token)

    def token_bytes(self, token: int) -> list[int]:
        """What one token adds to a text in UTF-8."""
        if self.tokenizer.joins_bytes and token < self.tokenizer.vocab_size:
            return list(self.tokenizer.token_bytes(token))
        return list(self.token_text(token).encode())

    def completion_logprobs(self, chances: Sequence[Chance | None], texts: Sequence[int], offset: int) -> dict:
        """`logprobs` of a completion.

        Args:
            chances: of each token; None for a prompt's first.
            texts: the tokens.
            offset: characters of the text before them.
        """
        tokens = [self.token_text(token) for token in texts]
        offsets = []
        for text in tokens:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": tokens,
            "token_logprobs": [None if one is None else one[1] for one in chances],
            "top_logprobs": [
                None if one is None else {self.token_text(token): value for token, value in one[2]} for one in chances
            ],
            "text_offset": offsets,
        }

    def chat_logprobs(self, chances: Sequence[Chance]) -> dict:
        """`logprobs` of a chat's answer."""
        return {
            "content": [
                {**self._entry(token, value), "top_logprobs": [self._entry(*other) for other in top]}
                for token, value, top in chances
            ],
            "refusal": None,
        }

    def _entry(self, token: int, logprob: float) -> dict:
        return {"token": self.token_text(token), "logprob": logprob, "bytes": self.token_bytes(token)}
