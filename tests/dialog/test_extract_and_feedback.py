"""Prompts and feedback byte for byte, and the program extracted from a response."""

from __future__ import annotations

import dataclasses

import pytest

from rlef_jax.dialog.extract import continued, ends_in_example, extract_code
from rlef_jax.dialog.feedback import feedback_message
from rlef_jax.dialog.prompts import problem_prompt
from rlef_jax.types import Problem, Status, TestCase, TestResult, Verdict

FORMAT = (
    "Your code should be enclosed in triple backticks like so: ```python YOUR CODE HERE ```. "
    "Use the backticks for your code only."
)
# The template of appendix C.1, with its own placeholders as inputs and outputs.
TEMPLATE = (
    "Your code failed the following tests:\n\n- input `${input}` failed:\nExpected output `${expected_output}` but got "
    "`${observed_output}`\n- input `${input}` failed:\n${stacktrace}\n- input `${input}` failed: Execution took too "
    f"long.\n- input `${{input}}` failed: Out of memory.\n\nGive it another try.\n{FORMAT}"
)
TRACE = (
    'Traceback (most recent call last):\n  File "solution.py", line 1, in <module>\n    1 / 0\nZeroDivisionError: no'
)
DOCSTRING = '    """\n    ```\n    f()\n    ```\n    """'
READS = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"


def problem(*tests: TestCase, hidden: str = "HIDDEN") -> Problem:
    return Problem("p", "Add.", tests, (TestCase(hidden + "-in", hidden + "-out"),))


def verdict(*results: TestResult) -> Verdict:
    status = next((r.status for r in results if r.status is not Status.PASSED), Status.PASSED)
    return Verdict(status, results)


def test_first_prompt_is_the_papers():
    assert problem_prompt("${problem}") == (
        "Provide a Python solution for the following competitive programming question: ${problem}.\n\n" + FORMAT
    )


def test_feedback_is_the_papers_template():
    case = TestCase("${input}", "${expected_output}")
    message = feedback_message(
        problem(case, case, case, case, case),
        verdict(
            TestResult(Status.WRONG_ANSWER, stdout="${observed_output}"),
            TestResult(Status.PASSED, stdout="fine"),
            TestResult(Status.RUNTIME_ERROR, stdout="half", error="${stacktrace}"),
            TestResult(Status.TIME_LIMIT),
            TestResult(Status.MEMORY_LIMIT),
        ),
    )
    assert message == TEMPLATE


def test_inputs_and_outputs_are_verbatim():
    message = feedback_message(
        problem(TestCase("4\n1 1\n", "0\n1\n")), verdict(TestResult(Status.WRONG_ANSWER, stdout=" 0\n`1`\n"))
    )
    assert "- input `4\n1 1\n` failed:\nExpected output `0\n1\n` but got ` 0\n`1`\n`\n\nGive" in message


def test_own_messages():
    case = TestCase("1", "2")
    no_code = feedback_message(problem(case), Verdict(Status.NO_CODE))
    assert no_code == f"Your response has no code block.\n\nGive it another try.\n{FORMAT}"
    much = feedback_message(problem(case), verdict(TestResult(Status.OUTPUT_LIMIT, stdout="x" * 99)))
    assert "- input `1` failed: Too much output.\n\n" in much
    silent = feedback_message(problem(case), verdict(TestResult(Status.RUNTIME_ERROR, exit_code=3)))
    assert "- input `1` failed:\nThe program ended with exit code 3.\n\n" in silent


def test_a_syntax_error_is_told_once_or_is_the_stack_trace_of_each_test():
    first, second = TestCase("1\n", "2"), TestCase("3\n", "4")
    head, end = '  File "solution.py", line 1\n    x = = 1', "SyntaxError: invalid syntax"
    trace = f"{head}\n        ^\n{end}"
    failed = Verdict(Status.SYNTAX_ERROR, (TestResult(Status.SYNTAX_ERROR, error=trace),) * 2)
    once = feedback_message(problem(first, second), failed)
    assert once == f"Your code does not parse:\n\n{head}\n{end}\n\nGive it another try.\n{FORMAT}"
    each = feedback_message(problem(first, second), failed, syntax_errors="per_test")
    assert each == (
        f"Your code failed the following tests:\n\n- input `1\n` failed:\n{trace}\n- input `3\n` failed:\n{trace}"
        f"\n\nGive it another try.\n{FORMAT}"
    )
    cut = feedback_message(problem(first, second), failed, syntax_errors="per_test", max_failures=1, max_chars=14)
    assert f"[{len(trace) - 14} characters cut]...{trace[-14:]}\n...[1 failed tests cut]\n\nGive" in cut
    one = Verdict(Status.SYNTAX_ERROR, failed.public[:1])  # of a hidden test, where none is public
    assert feedback_message(problem(), one, syntax_errors="per_test") == once


def test_no_feedback_starts_at_the_request():
    shown = feedback_message(problem(TestCase("1", "2")), verdict(TestResult(Status.PASSED)), kind="none")
    assert shown == f"Give it another try.\n{FORMAT}"


def test_hidden_results_never_show():
    plain = problem(TestCase("1", "2"))
    text = verdict(TestResult(Status.WRONG_ANSWER, stdout="3"))
    hidden = (TestResult(Status.WRONG_ANSWER, stdout="SECRET"),)
    message = feedback_message(plain, dataclasses.replace(text, hidden=hidden))
    assert message == feedback_message(plain, text)
    assert "HIDDEN" not in message and "SECRET" not in message


def test_cuts_are_marked():
    case = TestCase("abcdefgh", "12345678")
    results = (TestResult(Status.WRONG_ANSWER, stdout="zyxwvuts"), TestResult(Status.RUNTIME_ERROR, error=TRACE))
    message = feedback_message(problem(case, case, case), verdict(*results, results[0]), max_failures=2, max_chars=6)
    assert "- input `abcdef...[2 characters cut]` failed:\n" in message
    assert "Expected output `123456...[2 characters cut]` but got `zyxwvu...[2 characters cut]`\n" in message
    assert f"[{len(TRACE) - 6} characters cut]...{TRACE[-6:]}\n...[1 failed tests cut]\n\nGive" in message


def test_what_cannot_be_said_is_an_error():
    case = TestCase("1", "2")
    with pytest.raises(ValueError, match="judge broke"):
        feedback_message(problem(case), Verdict(Status.INFRA_ERROR))
    with pytest.raises(ValueError, match="every public test passed"):
        feedback_message(problem(case), verdict(TestResult(Status.PASSED)))
    with pytest.raises(ValueError, match="2 public tests"):
        feedback_message(problem(case, case), verdict(TestResult(Status.WRONG_ANSWER)))
    with pytest.raises(ValueError, match="kind"):
        feedback_message(problem(case), verdict(TestResult(Status.WRONG_ANSWER)), kind="random")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no code at all", None),
        ("```python\nprint(1)\n```", "print(1)"),
        ("Sure!\n```python\nprint(1)\n```\nor\n```python\nprint(2)\n```\n", "print(2)"),
        ("```python\nprint(1)\n```\noutput:\n```\n1\n```", "print(1)"),
        ("```\nprint(1)\n```\n```text\nprint(2)\n```", "print(2)"),
        ("```python\nprint(1)", None),
        ("```python\nprint(1)\n```\nbetter:\n```python\nprint(2)", "print(1)"),
        ("```python\nprint(1)\n```python\nprint(2)\n```", "print(2)"),
        ("```Python3 \nprint(1)\n``` ", "print(1)"),
        ("1. so\n   ```python\n   if x:\n       y()\n   ```", "if x:\n    y()"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
        ("```python print(1) ```", "print(1)"),
        ("```python\n\n  \n```", None),
        ("```python\ns = 'a\x0cb\u2028c'\r\n```", "s = 'a\x0cb\u2028c'\r"),
        ("``` ```", None),
        ("```python\nprint(1)```", "print(1)"),
        ("```python\nprint(1)\nprint(2)``` prints two lines", "print(1)\nprint(2)"),
        ("So: ```python\nprint(1)\n``` prints 1", "print(1)"),
        (f"```python\ndef f():\n{DOCSTRING}\n    return 1", None),
        ("~~~python\nprint(1)\n~~~", "print(1)"),
        ("~~~python\ns = '''\n```\n'''\n~~~", "s = '''\n```\n'''"),
        ("```python\ns = '''\n~~~\n'''\n```", "s = '''\n~~~\n'''"),
        (f"```python\ndef f():\n{DOCSTRING}\n```", f"def f():\n{DOCSTRING}"),
        (
            f"```python\ndef f():\n{DOCSTRING.replace('```', '```python', 1)}\n    f()\n```",
            f"def f():\n{DOCSTRING.replace('```', '```python', 1)}\n    f()",
        ),
        ("- so\n  - or\n    ```python\n    def f():\n        x()\n\n    ```", "def f():\n    x()\n"),
        ("> ```python\n> print(1)\n> ```", "print(1)"),
        ("- so\n  ```python\nprint(1)\n```", "print(1)"),
        ("    ```python\n    print(1)\n    ```", None),
        ("```python\nprint(1)\n  ~~~\n``", None),
        ("<answer>\n```python\nprint(1)\n```\n</answer>", "print(1)"),
        ("```python\nprint(1)\n`````", "print(1)"),
        ("<think>\n```python\nprint(0)\n```\n</think>\n```python\nprint(1)\n```", "print(1)"),
        ("```python\nprint(0)\n```\n</think>\nIt can't be done.", None),
        ("<think>\nMaybe\n```python\nprint(0)\n```", None),
        ("<think>\na\n</think>\n```python\nprint(1)\n```\n<think>\n```python\nprint(0)\n```", "print(1)"),
        ("```python\nprint('<think>')\n```", "print('<think>')"),
    ],
)
def test_extract_code(text, code):
    assert extract_code(text) == code


@pytest.mark.parametrize(
    ("text", "example"),
    [
        (f"{READS}\nFor instance:\n```python\nassert add(3, 4) == 7\n```", True),
        (f"{READS}\nIt gives:\n```python\n>>> add(3, 4)\n7\n```", True),
        (f"{READS}\nBetter:\n{READS}", False),
        (READS, False),
        ("```python\nprint(1)\n```\n```python\nprint(2)\n```", False),
        (f"{READS}\n```text\n7\n```", False),
        ("no code", False),
    ],
)
def test_a_last_block_that_only_shows_another_ones_use_is_counted(text, example):
    assert ends_in_example(text) is example


def test_a_continued_response_keeps_its_docstrings_and_its_imports_from_the_future():
    start = 'def f(x):\n    """Doubles.\n    """\n'
    body = '    def g(y):\n        """\n        ```\n        g(1)\n        ```\n        """\n        return 2 * y\n'
    assert continued(start, f"{body}    return g(x)\n```\n") == f"{start}{body}    return g(x)\n"
    assert continued(start, "\ufeff    return 2 * x") == f"{start}    return 2 * x"
    program = "from __future__ import annotations; y = 2\n\ndef f(x: No):\n    return y * x"
    names = {}
    exec(continued(start, f"```python\n{program}\n```"), names)
    assert names["f"](3) == 6
