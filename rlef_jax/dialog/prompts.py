"""The first prompt of a dialogue about a problem (appendices C.1, C.4 and C.5, byte for byte)."""

from __future__ import annotations

from rlef_jax.types import Problem

FORMAT_SENTENCE = (
    "Your code should be enclosed in triple backticks like so: ```python YOUR CODE HERE ```. "
    "Use the backticks for your code only."
)
STYLES = ("contest", "human_eval", "mbpp", "function")
_QUESTION = "Provide a Python solution for the following competitive programming question:"


def problem_prompt(description: str) -> str:
    """The user message of turn 1. The description is inserted unchanged; the full stop after it is the paper's."""
    return f"{_QUESTION} {description}.\n\n{FORMAT_SENTENCE}"


def first_message(problem: Problem) -> str:
    """The user message of turn 1 in the problem's style. Raises ValueError for an unknown style.

    It doesn't include `problem.start`, with which every response begins (C.4).
    """
    match problem.style:
        case "contest":
            return problem_prompt(problem.description)
        case "human_eval":
            return (
                "Write a solution to the following problem and make sure that it passes the tests:"
                f"\n{problem.description}"
            )
        case "function":  # ours: the description ends with code, after which a full stop would be wrong
            return f"{_QUESTION} {problem.description}\n\n{FORMAT_SENTENCE}"
        case "mbpp":
            tests = "\n".join(problem.shown_tests)
            return (
                f"Provide a Python solution for the following problem: {problem.description}"
                f"\nYour code should pass these tests:\n\n{tests}\n\n{FORMAT_SENTENCE}"
            )
    raise ValueError(f"{problem.name}: no prompt of style {problem.style!r}; there are {', '.join(STYLES)}")
