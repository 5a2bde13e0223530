"""Messages to tokens, append-only: a later message never changes the tokens before it.

A format is data (`ChatStyle`): special tokens around roles and texts. In the tiny model's

    <s> [<|system|> system <|end|>] <|user|> problem <|end|> <|assistant|> response <|end|>
                                    <|user|> feedback <|end|> <|assistant|> response <|end|> ...

the model writes `response <|end|>`; everything else is a prompt. A response that was cut by length lacks its <|end|>:
the next prompt then begins with it, so it isn't an action. Text that a format adds after the end of a response
(ChatML's newline) belongs to the next prompt.

Text between two special tokens is encoded as one string, as in a rendered template. So the ids equal those of the
rendering wherever the template itself only appends. docs/models.md lists the templates that don't.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Protocol


class TextTokenizer(Protocol):
    """The tokenizer interface that chat formats and readers of episodes use."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Ids without special tokens: text that spells one is encoded as ordinary characters."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out."""

    def show(self, ids: Sequence[int]) -> str:
        """The text of ids with special tokens spelled out, for human readers."""

    def special_id(self, mark: str) -> int:
        """The id of a special token. Raises ValueError if there is none with this spelling."""


class Mark(str):
    """The spelling of a special token; plain `str` pieces are text."""


@dataclasses.dataclass(frozen=True)
class ChatStyle:
    """A chat format: the special tokens and texts around messages.

    Attributes:
      marks: every special token that occurs in the other strings.
      opening: precedes a message's text; {role} is system, user or assistant.
      end: the special token after a message's text.
      head: opens the conversation.
      gap: text after `end`.
      answer: text that opens each response; part of the prompt.
      system: the default system message; "" for none.
      system_head: text before every system message.
      trim: whether white space at both ends of a message is removed.
      stops: further special tokens that end a response, if the vocabulary has them.
    """

    marks: tuple[str, ...]
    opening: str
    end: str
    head: str = ""
    gap: str = ""
    answer: str = ""
    system: str = ""
    system_head: str = ""
    trim: bool = False
    stops: tuple[str, ...] = ()

    def first(self, user: str, system: str = "", start: str = "") -> list[str]:
        """Marks and texts of turn 1's prompt."""
        system_text = self.system_head + (self.trimmed(system) or self.system)
        system_message = self._message("system", system_text) if system_text else []
        return _merge_texts([*self._split(self.head), *system_message, *self.user_turn(user, start)])

    def next(self, user: str, *, closed: bool, start: str = "") -> list[str]:
        """Marks and texts between a response and the next one; `closed`: the response already ended with `end`."""
        end = [] if closed else [Mark(self.end)]
        return _merge_texts([*end, self.gap, *self.user_turn(user, start)])

    def another(self, user: str, start: str = "") -> list[str]:
        """Marks and texts between the last response of a dialogue and the first of another one.

        An empty assistant message separates the two dialogues (C.3).
        """
        empty = self._message("assistant", "")
        return _merge_texts([self.gap, *empty, *self.user_turn(user, start)])

    def user_turn(self, user: str, start: str = "") -> list[str]:
        """Marks and texts of a user message and of the opening of the response."""
        return _merge_texts([*self._message("user", user), *self._answer(start)])

    def trimmed(self, text: str) -> str:
        """A message's text, without outer white space if the format trims it."""
        return text.strip() if self.trim else text

    def _message(self, role: str, text: str) -> list[str]:
        # `first` has already trimmed the system message, before it prepended `system_head`.
        content = text if role == "system" else self.trimmed(text)
        return [*self._split(self.opening.format(role=role)), content, Mark(self.end), self.gap]

    def _answer(self, start: str) -> list[str]:
        return [*self._split(self.opening.format(role="assistant") + self.answer), start]

    def _split(self, words: str) -> list[str]:
        parts = re.split("(" + "|".join(map(re.escape, self.marks)) + ")", words)
        return [Mark(part) if part in self.marks else part for part in parts]


def _merge_texts(pieces: Sequence[str]) -> list[str]:
    """Concatenates neighbouring texts and drops empty ones."""
    joined: list[str] = []
    for piece in pieces:
        if joined and not isinstance(piece, Mark) and not isinstance(joined[-1], Mark):
            joined[-1] += piece
        elif piece:
            joined.append(piece)
    return joined


TINY = ChatStyle(
    marks=("<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), opening="<|{role}|>", end="<|end|>", head="<s>"
)


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """A chat format with a tokenizer. Raises ValueError if the tokenizer lacks one of the format's marks.

    `more_stops` are further ids that end a response, from a model's files.
    """

    tokenizer: TextTokenizer
    style: ChatStyle = TINY
    more_stops: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for mark in self.style.marks:
            self.tokenizer.special_id(mark)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a response; the first is the format's own."""
        ids = [self.tokenizer.special_id(self.style.end)]
        for mark in self.style.stops:
            try:
                ids.append(self.tokenizer.special_id(mark))
            except ValueError:  # not in this vocabulary
                continue
        return tuple(dict.fromkeys((*ids, *self.more_stops)))

    def first_prompt(self, user: str, system: str = "", *, start: str = "") -> list[int]:
        """Tokens of turn 1's prompt. An empty `system` means the format's default system message, if any.

        The prompt ends with the text `start`, which the sampled response continues.
        """
        return self._ids(self.style.first(user, system, start))

    def next_prompt(self, user: str, *, closed: bool, start: str = "") -> list[int]:
        """Tokens appended after a response; `closed` says whether the response ended with a stop id."""
        return self._ids(self.style.next(user, closed=closed, start=start))

    def another_prompt(self, user: str, *, start: str = "") -> list[int]:
        """Tokens between a dialogue's last response (with its stop id) and another dialogue's first response."""
        return self._ids(self.style.another(user, start))

    def user_turn(self, user: str, *, start: str = "") -> list[int]:
        """The tokens with which every prompt with this user message ends."""
        return self._ids(self.style.user_turn(user, start))

    def response(self, text: str) -> list[int]:
        """Tokens of a response that wasn't sampled (supervised data), including its stop id."""
        return [*self.tokenizer.encode(self.style.trimmed(text)), self.stop_ids[0]]

    def response_text(self, ids: Sequence[int]) -> str:
        """Text of a sampled response, without its stop token."""
        return self.tokenizer.decode(ids)

    def _ids(self, pieces: Sequence[str]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            ids += [self.tokenizer.special_id(piece)] if isinstance(piece, Mark) else self.tokenizer.encode(piece)
        return ids
