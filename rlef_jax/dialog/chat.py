"""Messages to tokens, append-only: a later message never changes the tokens before it.

A format is data (`ChatStyle`): special tokens and texts around messages. In the tiny model's

    <s> [<|system|> system <|end|>] <|user|> problem <|end|> <|assistant|> response <|end|>
                                    <|user|> feedback <|end|> <|assistant|> response <|end|> ...

the model writes `response <|end|>`; everything else is a prompt. A response that was cut by length lacks its <|end|>:
the next prompt then begins with it, so it isn't an action. What a template writes after the end of a response (ChatML's
newline) belongs to the next prompt too. The formats of published models come from their own templates
(`dialog/derive.py`).

Text between two special tokens is encoded as one string, as in a rendered template.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

from rlef_jax.errors import ConfigError


class SystemMessageError(ConfigError):
    """A system message that a chat format doesn't write.

    It speaks of `config.episode.system_prompt`, where system messages are from; whoever has one from elsewhere says so
    in front of `fault`, which is what is wrong and how to mend it.
    """

    def __init__(self, fault: str) -> None:
        super().__init__(f"config.episode.system_prompt: {fault}")
        self.fault = fault


class Mark(str):
    """The spelling of a special token; plain `str` pieces are text."""


class Slot(str):
    """The place of a message's text in a `ChatStyle`, by its name."""


SYSTEM, USER = Slot("system"), Slot("user")
AFTER_SYSTEM = "user after system"

Pieces = tuple[str, ...]  # of Mark, Slot and text


class TextTokenizer(Protocol):
    """The tokenizer interface that chat formats and readers of episodes use."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Ids of text inside a prompt. None is special: text that spells one is encoded as ordinary characters."""

    def encode_pieces(self, pieces: Sequence[str], *, opening: bool = False) -> list[int]:
        """Ids of special tokens (`Mark`) and texts; `opening`: a sequence begins with them.

        Raises ValueError for a mark that the tokenizer hasn't got.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out."""

    def show(self, ids: Sequence[int]) -> str:
        """The text of ids with special tokens spelled out, for human readers."""

    def special_id(self, mark: str) -> int:
        """The id of a special token. Raises ValueError if there is none with this spelling."""


TRIMS: dict[str, Callable[[str], str]] = {
    "": lambda text: text,
    "strip": str.strip,
    "lstrip": str.lstrip,
    "rstrip": str.rstrip,
    "strip newlines": lambda text: text.strip("\n"),
    "lstrip newlines": lambda text: text.lstrip("\n"),
    "rstrip newlines": lambda text: text.rstrip("\n"),
}
"""What templates do to white space at the ends of messages, by name."""


@dataclasses.dataclass(frozen=True)
class ChatStyle:
    """A chat format: the special tokens and texts around messages.

    Attributes:
      first: turn 1's prompt, with the slot `USER`.
      first_with_system: the same with the slot `SYSTEM`; None where the format has no system message.
      end: the special token that ends a response.
      next: what follows `end`, up to the next response, with the slot `USER`.
      another: what follows the `end` of a dialogue's last response, up to the first response of another dialogue, with
        an empty assistant message between the two (C.3) and the slot `USER`; None where the format allows none.
      opener: what `first`, `next` and `another` end with, and stands before no earlier response in the template's own
        rendering, such as <think>.
      before, after: text that stands before and after each response. The model writes it, or doesn't.
      trims: what is done to white space around messages, a name of `TRIMS` by role. The first user message has a role
        of its own where a system message precedes it: some templates trim the two as one (Llama 2).
    """

    first: Pieces
    first_with_system: Pieces | None
    end: Mark
    next: Pieces
    another: Pieces | None
    opener: Pieces = ()
    before: str = ""
    after: str = ""
    trims: tuple[tuple[str, str], ...] = ()

    def trimmed(self, role: str, text: str) -> str:
        """A message's text as the format writes it; `role` is system, user, assistant or `AFTER_SYSTEM`."""
        return TRIMS[dict(self.trims).get(role, "")](text)

    def fill(self, pieces: Pieces, *, user: str = "", system: str = "", start: str = "") -> list[str]:
        """Marks and texts, with messages in their slots; `start` comes last. Texts side by side are one."""
        role = AFTER_SYSTEM if system else "user"
        texts = {SYSTEM: self.trimmed("system", system), USER: self.trimmed(role, user)}
        return merge_texts([*(texts[piece] if isinstance(piece, Slot) else piece for piece in pieces), start])


def merge_texts(pieces: Sequence[str]) -> list[str]:
    """Concatenates neighbouring texts and drops empty ones."""
    joined: list[str] = []
    for piece in pieces:
        if isinstance(piece, Mark | Slot):
            joined.append(piece)
        elif joined and not isinstance(joined[-1], Mark | Slot):
            joined[-1] += piece
        elif piece:
            joined.append(piece)
    return joined


_TINY_TURN = (Mark("<|user|>"), USER, Mark("<|end|>"), Mark("<|assistant|>"))
TINY = ChatStyle(
    first=(Mark("<s>"), *_TINY_TURN),
    first_with_system=(Mark("<s>"), Mark("<|system|>"), SYSTEM, Mark("<|end|>"), *_TINY_TURN),
    end=Mark("<|end|>"),
    next=_TINY_TURN,
    another=(Mark("<|assistant|>"), Mark("<|end|>"), *_TINY_TURN),
)


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """A chat format with a tokenizer. Raises ValueError if the tokenizer lacks one of the format's marks.

    Attributes:
      more_stops: further ids that end a response, from a model's files.
      notes: where the model's template isn't append-only, what happens instead (`derive.NOTES`).
      check_system: raises SystemMessageError for one that the model's template writes in another way.
    """

    tokenizer: TextTokenizer
    style: ChatStyle = TINY
    more_stops: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    check_system: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        style = self.style
        for pieces in (style.first, style.first_with_system or (), style.next, style.another or (), (style.end,)):
            for mark in pieces:
                if isinstance(mark, Mark):
                    self.tokenizer.special_id(mark)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a response; the first is the format's own."""
        return tuple(dict.fromkeys((self.tokenizer.special_id(self.style.end), *self.more_stops)))

    def first_prompt(self, user: str, system: str = "", *, start: str = "") -> list[int]:
        """Tokens of turn 1's prompt. An empty `system` means the format's default system message, if any.

        The prompt ends with the text `start`, which the sampled response continues. Raises SystemMessageError for a
        system message that the format has no place for.
        """
        pieces = self.style.first
        if system:
            if self.style.first_with_system is None:
                raise SystemMessageError(
                    "the model's chat template takes no system message: leave it out, or let the first user message"
                    " begin with it"
                )
            pieces = self.style.first_with_system
            if self.check_system is not None:
                self.check_system(system)
        filled = self.style.fill(pieces, user=user, system=system, start=start)
        return self.tokenizer.encode_pieces(filled, opening=True)

    def next_prompt(self, user: str, *, closed: bool, start: str = "") -> list[int]:
        """Tokens appended after a response; `closed` says whether the response ended with a stop id."""
        ids = self._after_end(self.style.next, user, start)
        return ids if closed else [*self.tokenizer.encode_pieces(merge_texts([self.style.after, self.style.end])), *ids]

    def another_prompt(self, user: str, *, start: str = "") -> list[int]:
        """Tokens between a dialogue's last response (with its stop id) and another dialogue's first response.

        Raises ConfigError where the format allows no empty message between the two.
        """
        if self.style.another is None:
            raise ConfigError(
                "--few-shot: the model's chat template refuses two assistant messages in a row, and an empty one"
                " separates the dialogues (C.3): this model can't be shown any"
            )
        return self._after_end(self.style.another, user, start)

    def user_turn(self, user: str, *, start: str = "") -> list[int]:
        """The tokens with which every prompt with this user message ends, in turn 1 and later."""
        prompts = self.first_prompt(user, start=start), self.next_prompt(user, closed=True, start=start)
        pairs = zip(*map(reversed, prompts), strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return prompts[0][len(prompts[0]) - same :]

    def response(self, text: str) -> list[int]:
        """Tokens of a response that wasn't sampled (supervised data), including its stop id."""
        words = self.style.before + self.style.trimmed("assistant", text) + self.style.after
        return self.tokenizer.encode_pieces(merge_texts([words, self.style.end]))

    def without_thinking(self, prompt: Sequence[int], response: Sequence[int]) -> list[int] | None:
        """What later turns see in place of a prompt and its sampled response; None where there is nothing to cut.

        It goes as the templates of models that think do it: the prompt without `opener`, of the response what follows
        the last </think>, without newlines in front. A response whose thinking never ended leaves only its stop token.

        Raises ConfigError where the vocabulary has no <think> and </think>.
        """
        begin, end = self.thinking_ids
        opener = self.tokenizer.encode_pieces(self.style.opener)
        opened = bool(opener) and list(prompt[-len(opener) :]) == opener
        if not opened and begin not in response and end not in response:
            return None
        head = list(prompt[: len(prompt) - len(opener)] if opened else prompt)
        stop = [response[-1]] if response[-1] in self.stop_ids else []
        words = list(response[: len(response) - len(stop)])
        if end in words:
            words = words[len(words) - words[::-1].index(end) :]
        elif begin in words or (begin in opener and end not in opener):  # a thought that never ended
            words = []
        while words and not self.tokenizer.decode(words[:1]).strip("\n"):
            words.pop(0)
        return [*head, *words, *stop]

    @property
    def thinking_ids(self) -> tuple[int, int]:
        """The ids of <think> and </think>. Raises ConfigError where the vocabulary has none."""
        try:
            return self.tokenizer.special_id("<think>"), self.tokenizer.special_id("</think>")
        except ValueError as error:
            raise ConfigError(
                f'config.episode.thinking: "cut" is for models that think: {error}; set it to "keep"'
            ) from error

    def response_text(self, ids: Sequence[int]) -> str:
        """Text of a sampled response, without its stop token."""
        return self.tokenizer.decode(ids)

    def _after_end(self, pieces: Pieces, user: str, start: str) -> list[int]:
        """Ids of what follows a response's `end`, which can take white space behind it away (Phi-3)."""
        filled = self.style.fill((self.style.end, *pieces), user=user, start=start)
        return self.tokenizer.encode_pieces(filled)[1:]
