"""What a model is given after a response that failed: the next prompt's tokens, behind the context or in its place."""

from __future__ import annotations

from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.types import Episode


def next_prompt(
    episode: Episode, message: str, chat: ChatFormat, *, cut_thinking: bool = False
) -> tuple[list[int], bool]:
    """(tokens, whether the context begins anew with them) of the prompt with the user's next message.

    Args:
      episode: with a response at least.
      message: the user's, see `feedback.feedback_message`.
      chat: the chat format of the episode's tokens.
      cut_thinking: leaves out the thinking of the last response; the context then begins anew where it had any.

    Raises ConfigError where thinking is to be cut and the vocabulary has no <think>.
    """
    last = episode.turns[-1]
    prompt = chat.next_prompt(message, closed=last.finish_reason == "stop", start=episode.problem.start)
    if not cut_thinking:
        return prompt, False
    context = episode.context_ids
    short = chat.without_thinking(context[: len(context) - len(last.response_ids)], last.response_ids)
    return (prompt, False) if short is None else ([*short, *prompt], True)


def whole_prompt(episode: Episode, message: str, chat: ChatFormat, *, cut_thinking: bool = False) -> list[int]:
    """All tokens that the response after the next message sees, as one prompt: for a model that begins here.

    Arguments and errors as `next_prompt`.
    """
    prompt, anew = next_prompt(episode, message, chat, cut_thinking=cut_thinking)
    return prompt if anew else [*episode.context_ids, *prompt]
