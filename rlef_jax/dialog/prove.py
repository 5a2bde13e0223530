"""Tries a derived chat format on texts: it writes what the template writes, in the ids that the tokenizer makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlef_jax.dialog.chat import ChatFormat, ChatStyle, SystemMessageError
from rlef_jax.dialog.template import Template, TemplateError, user_says
from rlef_jax.errors import ConfigError

_SYSTEM = "Be brief."


def attempts(marks: Sequence[str]) -> list[str]:
    """Texts that a template or tokenizer may trip over."""
    sample = "".join([*marks[:4], *marks[-4:]])
    return [
        " \n\tblanks at both ends \n\n", f"{sample} in {sample} a text", f"{sample}", "", "word " * 500,
        "naïve café — 東京 🙂 \u2028", "```python\nfor i in range(3):\n    print(i)\n```\n",
        "{{ x }} {% if %} 'a' \"b\" \\n",
    ]  # fmt: skip


def prove(template: Template, chat: ChatFormat, backend: Any, marks: Sequence[str]) -> None:
    """Raises ConfigError, in one line, for a text that comes out otherwise than in the template's rendering.

    Args:
      template, chat: a template and the format derived from it.
      backend: the model's `tokenizers.Tokenizer`.
      marks: the spellings of its special tokens.
    """
    systems = ["", _SYSTEM] if chat.style.first_with_system is not None else [""]
    for text in attempts(marks):
        _try_response(template, chat.style, text)
        for system in systems if text else ():  # no user message is empty
            _try(template, chat, backend, text, system, spells=any(mark in text for mark in marks))


def _try(template: Template, chat: ChatFormat, backend: Any, text: str, system: str, *, spells: bool) -> None:
    style = chat.style
    first = style.first if not system else style.first_with_system or ()
    opening = _joined(style.fill(first, user=text, system=system))
    between = style.after + style.end + _joined(style.fill(style.next, user=text))
    try:
        rendered = template.render(user_says(text, system=system))
        longer = template.render(user_says("a", "b", text, system="" if "system" in chat.notes else system))
    except TemplateError as error:
        raise _refused(template, f"it can't be rendered with {_shown(text)}: {error}") from error
    if rendered != opening:
        raise _refused(template, f"its first turn is another with the message {_shown(text)}")
    if not longer.endswith("b" + between):
        raise _refused(template, f"the text between turns is another with the message {_shown(text)}")
    if not spells:  # what text spells is encoded otherwise, on purpose
        opening_ids = backend.encode(opening, add_special_tokens=False).ids
        between_ids = backend.encode(between, add_special_tokens=False).ids
        if opening_ids != chat.first_prompt(text, system) or between_ids != chat.next_prompt(text, closed=False):
            raise _refused(template, f"the tokenizer makes other ids of its rendering with {_shown(text)}")


def _try_response(template: Template, style: ChatStyle, text: str) -> None:
    try:
        rendered = template.render(user_says("a", text, "b"))
    except TemplateError as error:
        raise _refused(template, f"it can't be rendered with the response {_shown(text)}: {error}") from error
    if not rendered.endswith(style.after + style.end + _joined(style.fill(style.next, user="b"))):
        raise _refused(template, f"what follows the response {_shown(text)} is another text than after others")


def check_system(template: Template, style: ChatStyle, system: str) -> None:
    """Raises SystemMessageError for a system message to which the template does more than to write it."""
    try:
        rendered = template.render(user_says("a", system=system))
    except TemplateError as error:
        raise SystemMessageError(f"{template.source}: the chat template: {error}") from error
    if rendered != _joined(style.fill(style.first_with_system or (), user="a", system=system)):
        raise SystemMessageError(
            f"{template.source}: the chat template takes it for more than text (a switch such as /no_think): say it in"
            " config.model.chat_options"
        )


def _joined(pieces: Sequence[str]) -> str:
    return "".join(pieces)


def _shown(text: str) -> str:
    return repr(text if len(text) < 40 else text[:40] + "...")


def _refused(template: Template, rule: str) -> ConfigError:
    return ConfigError(f"{template.source}: its chat template can't be used: {rule}")
