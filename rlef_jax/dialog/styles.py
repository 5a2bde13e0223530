"""The chat formats of published models, and how a chat template is matched to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
import jinja2.sandbox

from rlef_jax.dialog.chat import TINY, ChatStyle, Mark
from rlef_jax.errors import ConfigError

# Llama 3.1's template puts a date into every system message, 3.2's the current date. Fixed to 3.1's default here.
DATE = "26 Jul 2024"


def _chatml(system: str = "", answer: str = "", more: tuple[str, ...] = ()) -> ChatStyle:
    return ChatStyle(
        marks=("<|im_start|>", "<|im_end|>", *more), opening="<|im_start|>{role}\n", end="<|im_end|>", gap="\n",
        system=system, answer=answer, stops=("<|endoftext|>",),
    )  # fmt: skip


def _llama(system_head: str = "") -> ChatStyle:
    return ChatStyle(
        marks=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        head="<|begin_of_text|>", opening="<|start_header_id|>{role}<|end_header_id|>\n\n", end="<|eot_id|>",
        system_head=system_head, trim=True, stops=("<|end_of_text|>", "<|eom_id|>"),
    )  # fmt: skip


STYLES: dict[str, ChatStyle] = {
    "tiny": TINY,
    "llama3": _llama(),
    "llama31": _llama(f"Cutting Knowledge Date: December 2023\nToday Date: {DATE}\n\n"),
    "chatml": _chatml(),
    "smollm2": _chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "qwen2": _chatml("You are a helpful assistant."),
    "qwen25": _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    # Qwen 3 without thinking; with thinking, its format is plain "chatml".
    "qwen3_direct": _chatml(answer="<think>\n\n</think>\n\n", more=("<think>", "</think>")),
}
_PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})


def style_named(name: str) -> ChatStyle:
    """The format of that name. Raises ConfigError, which lists the names, for an unknown one."""
    if name not in STYLES:
        raise ConfigError(f"config.model.chat: {name!r} is not one of {', '.join(STYLES)}, or empty")
    return STYLES[name]


def style_of(template: str, special: dict[str, str], source: str) -> ChatStyle:
    """The format that renders a short dialogue exactly as a chat template does, with and without a system message.

    Args:
      template: a Jinja chat template, as Hugging Face uses it.
      special: special tokens that the template may use by name: bos_token, eos_token.
      source: the template's origin, for error messages.

    Raises ConfigError if no format matches.
    """
    dialogues = [list(_PROBE), [{"role": "system", "content": "s"}, *_PROBE]]
    try:
        rendered = [render(template, messages, special) for messages in dialogues]
    except jinja2.TemplateError as error:
        raise ConfigError(f"{source}: the chat template cannot be rendered: {error}") from error
    for style in STYLES.values():
        if [_rendering(style, messages) for messages in dialogues] == rendered:
            return style
    raise ConfigError(
        f"{source}: its chat template is none that rlef_jax knows: set config.model.chat to one of {', '.join(STYLES)},"
        " or add a ChatStyle to rlef_jax/dialog/styles.py"
    )


def _rendering(style: ChatStyle, messages: Sequence[dict[str, str]]) -> str:
    *system, user, response, feedback = (message["content"] for message in messages)
    pieces = [*style.first(user, "".join(system)), response, Mark(style.end), *style.next(feedback, closed=True)]
    return "".join(pieces)


def render(template: str, messages: Sequence[dict[str, str]], special: dict[str, str], **variables: Any) -> str:
    """A conversation rendered by a Hugging Face chat template, with the generation prompt. The date is `DATE`."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda _: DATE}
    return environment.from_string(template).render(
        messages=list(messages), add_generation_prompt=True, **special, **variables
    )
