"""Whether saved episodes were made in a model's own format: only then may their tokens stand for its prompts."""

from __future__ import annotations

from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.prompts import first_message
from rlef_jax.errors import ConfigError
from rlef_jax.types import Episode


def check_same_format(episode: Episode, chat: ChatFormat, system_prompt: str | None, where: str) -> None:
    """Raises ConfigError where an episode's first prompt is another than the model has for the same problem.

    Args:
      episode: with a response at least.
      chat: the model's chat format.
      system_prompt: the model's; None where what stands in front of the problem's own message isn't taken over, so
        that it may be anything.
      where: the key that names the episodes, and the folder or file that they are in.
    """
    message, start = first_message(episode.problem), episode.problem.start
    prompt = list(episode.turns[0].prompt_delta_ids)
    keys = ["config.model.tokenizer", "model.chat", "model.chat_options"]
    if system_prompt is None:
        expected = chat.user_turn(message, start=start)
        same, other = prompt[-len(expected) :] == expected, "tokenizer, chat template or wording than this model's"
    else:
        same = prompt == chat.first_prompt(message, system_prompt, start=start)
        other = "tokenizer, chat template, wording or system prompt than this model's, or behind other dialogues"
        keys.append("episode.system_prompt")
    if not same:
        raise ConfigError(
            f"{where}: the episode about {episode.problem.name!r} was made with another {other}: give episodes that"
            f" this model has made, or another one with the same {', '.join(keys)}"
        )
