"""A model's own chat template, rendered as `transformers` renders it."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlef_jax.errors import ConfigError
from rlef_jax.hugging_face import transformers

# Some templates write the current date into every system message (Llama 3.2, SmolLM3). It is this one here, Llama 3.1's
# own, so that a run's prompts don't depend on the day.
DATE = datetime.datetime(2024, 7, 26)

Message = Mapping[str, str]


class TemplateError(Exception):
    """A template that can't be rendered."""


@dataclasses.dataclass(frozen=True)
class Template:
    """A Jinja chat template.

    Attributes:
      source: where it is from, for errors.
      text: of the template.
      special: special tokens that it uses by name: bos_token, eos_token.
      options: what else it is given, such as enable_thinking.
    """

    source: str
    text: str
    special: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation, and the opening of the next response. Raises TemplateError."""
        transformers()
        from transformers.utils import chat_template_utils

        # The package's public function renders this compiled template, but takes no function for the date.
        try:
            compiled = chat_template_utils._compile_jinja_template(self.text)
            variables = {
                "tools": None,
                "documents": None,
                "strftime_now": DATE.strftime,
                **self.special,
                **self.options,
            }
            variables |= {"messages": [dict(m) for m in messages], "add_generation_prompt": True}
            return str(compiled.render(variables))
        except Exception as error:  # whatever the template does
            raise TemplateError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def parse_options(text: str) -> dict[str, Any]:
    """The options that `config.model.chat_options` holds as JSON; {} for "". Raises ConfigError."""
    try:
        options = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config.model.chat_options: {text[:200]!r} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ConfigError(
            f"config.model.chat_options: {text!r} is no JSON object of what the template is given, such as"
            ' {"enable_thinking": false}'
        )
    if reserved := [name for name in ("messages", "add_generation_prompt") if name in options]:
        raise ConfigError(f"config.model.chat_options: {reserved[0]} isn't free: each prompt has its own")
    return options


def user_says(*texts: str, system: str = "") -> list[Message]:
    """Messages of user and assistant by turns, after a system message where there is one."""
    head: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*head, *({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts))]
