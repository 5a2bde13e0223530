"""A `ChatStyle` out of a model's own chat template, proven on texts that try it.

The template is rendered around placeholders, with and without the next messages; what stands between them is the
format. A response is never rendered again: the model goes on seeing what it sampled. Where the template would write the
dialogue so far in another way, `NOTES` says what happens here. A template is refused where this can't be done:

- every message stands in its rendering once, as it is, or without white space at its ends;
- a special token follows each response, and none but <think> and </think> precedes it that the template doesn't open
  a new one with (a response of several messages, as gpt-oss writes, isn't one here);
- what stands between a response and the next one is the same in every turn, with a system message and without;
- the tokenizer makes the same ids of the rendering as of its pieces.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from rlef_jax.dialog.chat import AFTER_SYSTEM, SYSTEM, TRIMS, USER, ChatStyle, Mark, Pieces, Slot, merge_texts
from rlef_jax.dialog.template import Message, Template, TemplateError, user_says
from rlef_jax.errors import ConfigError

NOTES = {
    "opening": "what the template opens a response with stays before earlier responses, where the template drops it",
    "insertion": "what the template puts before earlier responses, and not before a new one, is left out",
    "thinking": "the thinking of earlier responses stays, where the template drops it",
    "response": "earlier responses stay as they were sampled, where the template changes them",
    "system": "the system message stays in front, where the template moves it to the last user message",
    "history": "earlier messages stay as they were first written, where the template writes them in another way later",
}
"""What happens where a template isn't append-only, by name; docs/models.md names models."""


def note_lines(notes: Sequence[str]) -> list[str]:
    """Lines that say so at the start of a run."""
    return [f"chat template: {NOTES[name]} (docs/models.md)" for name in notes]


# Placeholders: private characters, so that no template and no tokenizer's special token has them.
_S, _U1, _R1, _U2, _R2, _U3 = (f"\ue000{name}\ue001" for name in ("s", "u1", "r1", "u2", "r2", "u3"))
_THINKING = re.compile("</?think>")
_BLANKS = ("\n \t", " \t\n")


class _RefusedError(Exception):
    """Which rule a template broke."""


def derive(template: Template, marks: Sequence[str]) -> tuple[ChatStyle, tuple[str, ...]]:
    """(the template's format, names of `NOTES` that hold for it).

    Args:
      template: of the model.
      marks: the spellings of the tokenizer's special tokens.

    Raises ConfigError, in one line, naming the rule that the template breaks.
    """
    try:
        return _Deriver(template, marks).derive()
    except (_RefusedError, TemplateError) as error:
        raise ConfigError(
            f"{template.source}: its chat template can't be used: {error}; name another in config.model.chat (a .jinja"
            " file)"
        ) from error


@dataclasses.dataclass
class _Deriver:
    template: Template
    marks: Sequence[str]

    def __post_init__(self) -> None:
        longest_first = sorted(self.marks, key=len, reverse=True)
        self._mark = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if self.marks else None
        self._notes: list[str] = []

    def derive(self) -> tuple[ChatStyle, tuple[str, ...]]:
        first = self._cut(self._render(_U1), {_U1: USER})
        tail, before, opener = self._after_first_response(first)
        after, end, following = self._ending(tail)
        style = ChatStyle(
            first=self._split(first),
            first_with_system=self._with_system(tail),
            end=Mark(end),
            next=self._split(following),
            another=self._another(after + end),
            opener=self._split([opener]),
            before=before,
            after=after,
        )
        style = dataclasses.replace(style, trims=self._trims(style))
        self._later_turns(tail, style)
        self._thinking(tail)
        return style, tuple(dict.fromkeys(self._notes))

    def _render(self, *texts: str, system: str = "") -> str:
        return self.template.render(user_says(*texts, system=system))

    def _cut(self, rendered: str, slots: dict[str, Slot]) -> list[str]:
        """The rendering cut at the placeholders, with slots in their places."""
        for text, slot in slots.items():
            if (times := rendered.count(text)) != 1:
                raise _RefusedError(f"it writes the {slot} message {times} times, not once")
        parts = re.split("(" + "|".join(map(re.escape, slots)) + ")", rendered)
        return [slots.get(part, part) for part in parts]

    def _split(self, pieces: Sequence[str]) -> Pieces:
        """Texts cut at the marks in them."""
        parts: list[str] = []
        for piece in pieces:
            if isinstance(piece, Slot) or self._mark is None:
                parts.append(piece)
            else:
                parts += [Mark(part) if i % 2 else part for i, part in enumerate(self._mark.split(piece))]
        return tuple(merge_texts(parts))

    def _after_first_response(self, first: Sequence[str]) -> tuple[str, str, str]:
        """What follows the first response, with the next message's placeholder; what precedes it, and its prompt only:

        (tail, `ChatStyle.before`, `ChatStyle.opener`).
        """
        head, tail = self._around(self._render(_U1, _R1, _U2), _R1)
        self._cut(head, {_U1: USER})
        self._cut(tail, {_U2: USER})
        before_new, before_earlier = first[-1], head.partition(_U1)[2]
        if head.partition(_U1)[0] != first[0]:
            self._notes.append("history")
        if before_earlier == before_new:
            return tail, "", ""
        if before_new.startswith(before_earlier):
            self._notes.append("opening")
            return tail, "", before_new[len(before_earlier) :]
        if before_earlier.startswith(before_new) and not before_earlier[len(before_new) :].strip():
            return tail, before_earlier[len(before_new) :], ""
        if not before_earlier.startswith(before_new):
            raise _RefusedError("what stands before a response is another text once the dialogue goes on")
        inserted = _THINKING.sub("", before_earlier[len(before_new) :])
        if self._mark is not None and (mark := self._mark.search(inserted)):
            raise _RefusedError(f"earlier responses begin with {mark[0]}, and it doesn't open a new one so")
        self._notes.append("insertion")
        return tail, "", ""

    def _around(self, rendered: str, placeholder: str) -> tuple[str, str]:
        if (times := rendered.count(placeholder)) != 1:
            raise _RefusedError(f"it writes a response {times} times, not once")
        head, _, tail = rendered.partition(placeholder)
        return head, tail

    def _ending(self, tail: str) -> tuple[str, str, list[str]]:
        """(blanks after a response, the token that ends it, what follows up to the next response)."""
        between = tail.partition(_U2)[0]
        match = None if self._mark is None else self._mark.search(between)
        if match is None or between[: match.start()].strip():
            raise _RefusedError("no special token follows a response")
        return between[: match.start()], match[0], self._cut(tail[match.end() :], {_U2: USER})

    def _with_system(self, tail: str) -> Pieces | None:
        """Turn 1's prompt with a system message, None where the template refuses one or leaves it out."""
        try:
            rendered = self._render(_U1, system=_S)
        except TemplateError:
            return None
        if _S not in rendered:
            return None
        pieces = self._cut(rendered, {_S: SYSTEM, _U1: USER})
        _, later = self._around(self._render(_U1, _R1, _U2, system=_S), _R1)
        if _S in later:
            self._notes.append("system")
        elif later != tail:
            raise _RefusedError("with a system message another text stands between turns than without")
        return self._split(pieces)

    def _another(self, end: str) -> Pieces | None:
        """What leads to another dialogue, None where the template refuses an empty assistant message."""
        empty: Message = {"role": "assistant", "content": ""}
        try:
            rendered = self.template.render([*user_says(_U1, _R1), empty, *user_says(_U2)])
        except TemplateError:
            return None
        _, tail = self._around(rendered, _R1)
        return self._split(self._cut(tail[len(end) :], {_U2: USER})) if tail.startswith(end) else None

    def _trims(self, style: ChatStyle) -> tuple[tuple[str, str], ...]:
        """What happens to blanks around messages, by role."""

        def trim_name(placeholder: str, *texts: str, system: str = "") -> str | None:
            plain = self._render(*texts, system=system)
            padded = _BLANKS[0] + placeholder + _BLANKS[1]
            padded_texts = [padded if text == placeholder else text for text in texts]
            rendered = self._render(*padded_texts, system=padded if system == placeholder else system)
            fits = (name for name, trim in TRIMS.items() if rendered == plain.replace(placeholder, trim(padded)))
            return next(fits, None)

        trims = {"user": trim_name(_U1, _U1), "assistant": trim_name(_R1, _U1, _R1, _U2)}
        if style.first_with_system is not None:
            trims["system"], trims[AFTER_SYSTEM] = trim_name(_S, _U1, system=_S), trim_name(_U1, _U1, system=_S)
        if trims["assistant"] != "":
            self._notes.append("response")
            trims["assistant"] = trims["assistant"] or ""
        for role, name in trims.items():
            if name is None:
                raise _RefusedError(f"it changes the text of {role} messages, and not only blanks at their ends")
        if trim_name(_U2, _U1, _R1, _U2) != trims["user"]:
            raise _RefusedError("it treats blanks around the first user message in another way than around later ones")
        return tuple((role, name) for role, name in trims.items() if name)

    def _later_turns(self, tail: str, style: ChatStyle) -> None:
        rendered = self._render(_U1, _R1, _U2, _R2, _U3)
        head, last = self._around(rendered, _R2)
        if last != tail.replace(_U2, _U3):
            raise _RefusedError("what stands between two turns isn't the same in every turn")
        if {"opening", "insertion"} & set(self._notes):
            return  # what stands before the second response isn't what stood before the first
        if head != self._render(_U1) + style.before + _R1 + tail + style.before:
            self._notes.append("history")

    def _thinking(self, tail: str) -> None:
        thought, answer = "\ue000thought\ue001", "\ue000answer\ue001"
        response = f"<think>\n{thought}\n</think>\n\n{answer}"
        rendered = self._render(_U1, response, _U2)
        if thought not in rendered:
            self._notes.append("thinking")
        elif response not in rendered:
            self._notes.append("response")
        if not rendered.endswith(answer + tail):
            raise _RefusedError("what follows a response depends on the response")
