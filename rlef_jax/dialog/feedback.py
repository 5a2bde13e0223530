"""The feedback message after a failed response (appendices C.1, C.4 and C.5, byte for byte where they define it).

Only results of public tests are used: those of hidden tests never enter a prompt.

A program that doesn't parse fails each test with the stack trace that Python prints for it (`syntax_errors="per_test"`)
or, ours, is told so once.

Ours too, since the paper doesn't define them: the messages for a response without code and for too much output (for
function problems also too much memory); the text for a run-time error without a stack trace; the cuts of long texts,
each marked with the number of characters cut.
"""

from __future__ import annotations

import re

from rlef_jax.dialog.prompts import FORMAT_SENTENCE
from rlef_jax.types import FunctionTest, Problem, Status, Test, TestCase, TestResult, Verdict

TRY_AGAIN = f"Give it another try.\n{FORMAT_SENTENCE}"
_ENDINGS = {"contest": TRY_AGAIN, "human_eval": "Give it another try.", "mbpp": TRY_AGAIN, "function": TRY_AGAIN}
KINDS = ("true", "none")
_CARETS = re.compile(r"\n *\^+(?=\n)")


def feedback_message(
    problem: Problem,
    verdict: Verdict,
    *,
    kind: str = "true",
    max_failures: int = 0,
    max_chars: int = 0,
    syntax_errors: str = "once",
) -> str:
    """The user message after a response that didn't end its episode.

    Args:
      problem: the problem whose public tests were run.
      verdict: the response's verdict; `verdict.hidden` isn't used.
      kind: "true" shows the failed public tests (C.1), "none" shows nothing (B.5).
      max_failures: number of failed tests shown, the first ones; 0 shows all.
      max_chars: length to which each input, output and stack trace is cut, in characters; 0 cuts nothing.
      syntax_errors: "once" says that the program doesn't parse, and where, without Python's line of carets; "per_test"
        gives the stack trace as that of each public test. Without public tests it is said once.

    Raises:
      ValueError: no test failed, the judge itself broke, or the numbers of results and tests differ.
    """
    if kind not in KINDS:
        raise ValueError(f"feedback kind {kind!r} is not one of {KINDS}")
    if verdict.status is Status.INFRA_ERROR:
        raise ValueError(f"{problem.name}: the judge broke; there is nothing true to say of the program")
    ending = _ENDINGS[problem.style]
    if kind == "none":
        return ending
    if verdict.status is Status.NO_CODE:
        missing = "code" if problem.style == "human_eval" else "code block"
        return f"Your response has no {missing}.\n\n{ending}"
    if verdict.status is Status.SYNTAX_ERROR and (syntax_errors == "once" or not problem.public_tests):
        error = _CARETS.sub("", verdict.public[0].error) if verdict.public else "SyntaxError"
        return f"Your code does not parse:\n\n{_keep_tail(error, max_chars)}\n\n{ending}"
    contest = problem.style == "contest"
    head = "Your code failed the following tests:" if contest else "Your code failed some test cases:"
    entries = _entries(problem, verdict, max_failures, max_chars, successes=not contest)
    return f"{head}\n\n" + "\n".join(entries) + f"\n\n{ending}"


def _entries(problem: Problem, verdict: Verdict, max_failures: int, max_chars: int, *, successes: bool) -> list[str]:
    """An entry per failed test, up to `max_failures`, and per passed test if `successes` (C.4)."""
    if len(verdict.public) != len(problem.public_tests):
        raise ValueError(f"{problem.name}: {len(verdict.public)} results for {len(problem.public_tests)} public tests")
    entries: list[str] = []
    failures = 0
    for test, result in zip(problem.public_tests, verdict.public, strict=True):
        if result.status is Status.PASSED:
            entries += [f"- Success: `{_keep_head(_shown(test), max_chars)}`"] if successes else []
            continue
        failures += 1
        if not max_failures or failures <= max_failures:
            entries.append(_entry(test, result, max_chars))
    if not failures:
        raise ValueError(f"{problem.name}: every public test passed, so the episode was over")
    if max_failures and failures > max_failures:
        entries.append(f"...[{failures - max_failures} failed tests cut]")
    return entries


def _shown(test: Test) -> str:
    if isinstance(test, TestCase):
        return test.input
    if test.text or not test.calls:
        return test.text or test.check[-1]
    return f"{test.entry_point}({', '.join(map(repr, test.calls[0]))})"


def _entry(test: Test, result: TestResult, max_chars: int) -> str:
    if isinstance(test, FunctionTest):
        return _assert_entry(test, result, max_chars)
    return _input_entry(test, result, max_chars)


def _assert_entry(test: FunctionTest, result: TestResult, max_chars: int) -> str:
    """The entry of a failed assert (C.4): the assertion's message is quoted, a stack trace isn't."""
    head = f"- Failure: `{_keep_head(_shown(test), max_chars)}`:"
    match result.status:
        case Status.WRONG_ANSWER:
            return f"{head}\n`{_keep_head(result.error, max_chars)}`"
        case Status.RUNTIME_ERROR | Status.SYNTAX_ERROR:
            trace = result.error or f"The program ended with exit code {result.exit_code}."
            return f"{head}\n{_keep_tail(trace, max_chars)}"
        case Status.TIME_LIMIT:
            return f"{head}\nExecution took too long."
        case Status.MEMORY_LIMIT:
            return f"{head}\nOut of memory."
        case Status.OUTPUT_LIMIT:
            return f"{head}\nToo much output."
    raise ValueError(f"no message for a test with status {result.status}")


def _input_entry(test: TestCase, result: TestResult, max_chars: int) -> str:
    head = f"- input `{_keep_head(test.input, max_chars)}` failed:"
    match result.status:
        case Status.WRONG_ANSWER:
            expected = _keep_head(test.output, max_chars)
            return f"{head}\nExpected output `{expected}` but got `{_keep_head(result.stdout, max_chars)}`"
        case Status.RUNTIME_ERROR | Status.SYNTAX_ERROR:
            trace = result.error or f"The program ended with exit code {result.exit_code}."
            return f"{head}\n{_keep_tail(trace, max_chars)}"
        case Status.TIME_LIMIT:
            return f"{head} Execution took too long."
        case Status.MEMORY_LIMIT:
            return f"{head} Out of memory."
        case Status.OUTPUT_LIMIT:
            return f"{head} Too much output."
    raise ValueError(f"no message for a test with status {result.status}")


def _keep_head(text: str, max_chars: int) -> str:
    if not max_chars or len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}...[{len(text) - max_chars} characters cut]"


def _keep_tail(text: str, max_chars: int) -> str:
    """Cuts the beginning: a stack trace has the exception at its end."""
    if not max_chars or len(text) <= max_chars:
        return text
    return f"[{len(text) - max_chars} characters cut]...{text[-max_chars:]}"
