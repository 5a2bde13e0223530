"""Messages to tokens, append-only: a later message never changes the tokens before it.

A format is data (`ChatStyle`): special tokens around roles and texts. In the tiny model's

    <s> [<|system|> system <|end|>] <|user|> problem <|end|> <|assistant|> response <|end|>
                                    <|user|> feedback <|end|> <|assistant|> response <|end|> ...

the model writes `response <|end|>`; all else is a prompt. A response that was cut by length lacks its <|end|>, which
then stands at the head of the next prompt, where it is no action. Text that a format puts behind the end of a response
(ChatML's newline) belongs to the next prompt.

Text between two special tokens is encoded in one go, as a template's rendering is, so ids are the rendering's wherever
the template itself only appends. docs/models.md says where one doesn't.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Protocol


class TextTokenizer(Protocol):
    """What a chat format and a reader of episodes need of a tokenizer."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Ids without special tokens: text that spells one is encoded as the letters that it is."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text; special tokens have none."""

    def show(self, ids: Sequence[int]) -> str:
        """Text with special tokens spelled out, for people."""

    def special_id(self, mark: str) -> int:
        """The id of a special token. Raises ValueError where there is none of this spelling."""


class Mark(str):
    """A special token's spelling; any other string is text."""


@dataclasses.dataclass(frozen=True)
class ChatStyle:
    """A chat format's words.

    Attributes:
      marks: every special token that the other strings spell.
      opening: what stands before a message's text; {role} is system, user or assistant.
      end: the special token after a message's text.
      head: opens the conversation.
      gap: text after `end`.
      answer: text that opens each response, written for the model.
      system: the system message where the caller has none; "" leaves it out.
      system_head: text before every system message.
      trim: are a message's blanks at both ends dropped?
      stops: further special tokens that end a response, where the vocabulary has them.
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
        head = self.system_head + (self.trimmed(system) or self.system)
        shown = self._message("system", head) if head else []
        return _joined([*self._split(self.head), *shown, *self.user_turn(user, start)])

    def next(self, user: str, *, closed: bool, start: str = "") -> list[str]:
        """Marks and texts between a response and the next one; `closed`: the response holds its end already."""
        end = [] if closed else [Mark(self.end)]
        return _joined([*end, self.gap, *self.user_turn(user, start)])

    def another(self, user: str, start: str = "") -> list[str]:
        """Marks and texts between a dialogue's last response and another dialogue's: an empty response first (C.3)."""
        empty = self._message("assistant", "")
        return _joined([self.gap, *empty, *self.user_turn(user, start)])

    def user_turn(self, user: str, start: str = "") -> list[str]:
        """Marks and texts of a message and of what opens the response to it."""
        return _joined([*self._message("user", user), *self._answer(start)])

    def trimmed(self, text: str) -> str:
        """A message's text as the format has it."""
        return text.strip() if self.trim else text

    def _message(self, role: str, text: str) -> list[str]:
        # A system message is trimmed before its head is put in front.
        said = text if role == "system" else self.trimmed(text)
        return [*self._split(self.opening.format(role=role)), said, Mark(self.end), self.gap]

    def _answer(self, start: str) -> list[str]:
        return [*self._split(self.opening.format(role="assistant") + self.answer), start]

    def _split(self, words: str) -> list[str]:
        parts = re.split("(" + "|".join(map(re.escape, self.marks)) + ")", words)
        return [Mark(part) if part in self.marks else part for part in parts]


def _joined(pieces: Sequence[str]) -> list[str]:
    """Texts that stand side by side as one; empty ones left out."""
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
    """A chat format over a tokenizer's ids. Raises ValueError where the tokenizer lacks one of the format's marks.

    `more_stops` are ids that end a response beside the format's own: those that a model's files name.
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
        """Tokens of turn 1's prompt. Without a system message the format's own is used, if it has one.

        The response goes on after the text `start`, which is part of the prompt: it is given, not sampled.
        """
        return self._ids(self.style.first(user, system, start))

    def next_prompt(self, user: str, *, closed: bool, start: str = "") -> list[int]:
        """Tokens appended after a response; `closed` says whether the response ended with a stop id."""
        return self._ids(self.style.next(user, closed=closed, start=start))

    def another_prompt(self, user: str, *, start: str = "") -> list[int]:
        """Tokens appended after a dialogue's last response, its stop id included, where another dialogue begins."""
        return self._ids(self.style.another(user, start))

    def user_turn(self, user: str, *, start: str = "") -> list[int]:
        """Tokens that every prompt with this message ends with."""
        return self._ids(self.style.user_turn(user, start))

    def response(self, text: str) -> list[int]:
        """Tokens of a response written by someone else (supervised data), its stop id included."""
        return [*self.tokenizer.encode(self.style.trimmed(text)), self.stop_ids[0]]

    def response_text(self, ids: Sequence[int]) -> str:
        """Text of a sampled response; its stop id has none."""
        return self.tokenizer.decode(ids)

    def _ids(self, pieces: Sequence[str]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            ids += [self.tokenizer.special_id(piece)] if isinstance(piece, Mark) else self.tokenizer.encode(piece)
        return ids
