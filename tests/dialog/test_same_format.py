"""Whether an episode's first prompt is the model's own: what is compared, and what an error says."""

from __future__ import annotations

import dataclasses

import pytest

from rlef_jax.dialog.chat import TINY, USER, Mark
from rlef_jax.dialog.load import load_chat
from rlef_jax.dialog.prompts import first_message
from rlef_jax.dialog.same_format import check_same_format
from rlef_jax.errors import ConfigError
from rlef_jax.types import Episode, Problem, TestCase, Turn

CHAT = load_chat("package:tokenizer", "")
PROBLEM = Problem("double", "Print twice the number.", (TestCase("2", "4"),), (TestCase("7", "14"),))
BRIEF = "Be brief."


def episode(prompt):
    return Episode(PROBLEM, 0, 0, 0, (Turn(tuple(prompt), (5,), (0.0,), (0,), "stop", None),))


def test_the_models_own_prompts_are_taken():
    message = first_message(PROBLEM)
    for system in ("", BRIEF):
        made = episode(CHAT.first_prompt(message, system))
        check_same_format(made, CHAT, system, "key: folder")
        check_same_format(made, CHAT, None, "key: folder")
    behind = episode([*CHAT.first_prompt("x"), *CHAT.response("y"), *CHAT.next_prompt(message, closed=True)])
    check_same_format(behind, CHAT, None, "key: folder")
    with pytest.raises(ConfigError, match="or behind other dialogues: give"):
        check_same_format(behind, CHAT, "", "key: folder")


def test_what_differs_is_one_line_with_the_key_the_folder_and_the_mend():
    turned = (Mark("<|assistant|>"), USER, Mark("<|end|>"), Mark("<|user|>"))
    other = dataclasses.replace(CHAT, style=dataclasses.replace(TINY, first=(Mark("<s>"), *turned), next=turned))
    message = first_message(PROBLEM)
    reworded = CHAT.first_prompt(message.replace("twice", "thrice"))
    for made, system in (
        (CHAT.first_prompt(message, BRIEF), ""),
        (CHAT.first_prompt(message), BRIEF),
        (other.first_prompt(message), ""),
        (other.first_prompt(message), None),
        (reworded, ""),
        (reworded, None),
    ):
        with pytest.raises(ConfigError) as raised:
            check_same_format(episode(made), CHAT, system, "config.some.key: runs/x")
        line = str(raised.value)
        assert line.startswith("config.some.key: runs/x: the episode about 'double' was made with another tokenizer, ")
        assert ": give episodes that this model has made, or another one with the same config.model.tokenizer" in line
        assert line.endswith("episode.system_prompt") is (system is not None) and "\n" not in line
