"""Messages to tokens, append-only: a later message never changes the tokens before it.

    <s> [<|system|> system <|end|>] <|user|> problem <|end|> <|assistant|> response <|end|>
                                    <|user|> feedback <|end|> <|assistant|> response <|end|> ...

The model writes `response <|end|>`; all else is a prompt. A response that was cut by length lacks its <|end|>,
which then stands at the head of the next prompt, where it is no action.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rlef_jax.dialog.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """The chat format of one tokenizer."""

    tokenizer: Tokenizer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a response."""
        return (self.tokenizer.end_id,)

    def first_prompt(self, user: str, system: str = "") -> list[int]:
        """Tokens of turn 1's prompt. An empty system message is left out."""
        tok = self.tokenizer
        head = [tok.system_id, *tok.encode(system), tok.end_id] if system else []
        return [tok.bos_id, *head, *self._user_message(user)]

    def next_prompt(self, user: str, *, closed: bool) -> list[int]:
        """Tokens appended after a response; `closed` says whether the response ended with a stop id."""
        return [*([] if closed else [self.tokenizer.end_id]), *self._user_message(user)]

    def response(self, text: str) -> list[int]:
        """Tokens of a response written by someone else (supervised data), its stop id included."""
        return [*self.tokenizer.encode(text), self.tokenizer.end_id]

    def response_text(self, ids: Sequence[int]) -> str:
        """Text of a sampled response; its stop id has none."""
        return self.tokenizer.decode(ids)

    def _user_message(self, user: str) -> list[int]:
        tok = self.tokenizer
        return [tok.user_id, *tok.encode(user), tok.end_id, tok.assistant_id]
