"""The first prompt of a dialogue about a contest problem (appendix C.1, byte for byte)."""

from __future__ import annotations

FORMAT_SENTENCE = (
    "Your code should be enclosed in triple backticks like so: ```python YOUR CODE HERE ```. "
    "Use the backticks for your code only."
)


def problem_prompt(description: str) -> str:
    """The user message of turn 1. The description goes in as it is; the full stop after it is the paper's."""
    return (
        f"Provide a Python solution for the following competitive programming question: {description}."
        f"\n\n{FORMAT_SENTENCE}"
    )
