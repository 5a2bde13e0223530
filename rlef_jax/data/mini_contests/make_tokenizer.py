"""Trains the tiny model's tokenizer: python -m rlef_jax.data.mini_contests.make_tokenizer OUTPUT.model

Deterministic: the same file every time. It ships as rlef_jax/assets/tokenizer.model.
"""

from __future__ import annotations

import numpy as np

from rlef_jax import arguments
from rlef_jax.command_line import errors_as_lines
from rlef_jax.data.dialogues import CAREFUL, authors, with_reading, write_dialogue
from rlef_jax.data.mini_contests import problem_at
from rlef_jax.data.mini_contests.vocabulary import train_tokenizer

VOCAB_SIZE, PHRASES, PROBLEMS, SEED = 1088, 670, 2000, 7


class _Texts:
    """Collects texts in place of a chat format (`dialogues.ChatLike`)."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def first_prompt(self, user: str, system: str = "") -> list[int]:
        self.texts += [user, *([system] if system else [])]
        return []

    def next_prompt(self, user: str, *, closed: bool) -> list[int]:
        self.texts.append(user)
        return []

    def response(self, text: str) -> list[int]:
        self.texts.append(text)
        return []


def corpus(problems: int = PROBLEMS, seed: int = SEED) -> list[str]:
    """Messages of dialogues about training problems."""
    sink, rng = _Texts(), np.random.default_rng(seed)
    for i in range(problems):
        problem = problem_at("train", seed, i)
        for marked, author in authors(0.15).items():
            reading = int(rng.integers(len(problem.tags["readings"])))
            write_dialogue(with_reading(problem, reading), author, CAREFUL if marked else "", sink, rng)
    return sink.texts


def main() -> None:
    """Trains the tokenizer and writes it to the path on the command line."""
    parser = arguments.Parser(description=__doc__)
    parser.add_argument("output", type=arguments.path)
    with errors_as_lines():
        args = parser.parse_args()
        model = train_tokenizer(corpus(), VOCAB_SIZE, PHRASES)
        args.output.write_bytes(model)
        print(f"{args.output}: {len(model)} bytes")


if __name__ == "__main__":
    main()
