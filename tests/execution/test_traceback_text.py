"""Stack traces for feedback: golden texts, equal under this Python and the judge's."""

import textwrap

import pytest

from rlef_jax.execution.traceback_text import format_exception


def trace(source):
    source = textwrap.dedent(source)
    try:
        exec(compile(source, "solution.py", "exec"), {"__name__": "__main__"})
    except BaseException as exc:
        return format_exception(exc, source)
    raise AssertionError("the program didn't fail")


GOLDEN = {
    "n = 1\na = int('1,2')": (
        "Traceback (most recent call last):\n"
        '  File "solution.py", line 2, in <module>\n'
        "    a = int('1,2')\n"
        "ValueError: invalid literal for int() with base 10: '1,2'"
    ),
    "x = 1\ny = 2\nif x = = y:\n    pass": '  File "solution.py", line 3\n    if x = = y:\nSyntaxError: invalid syntax',
    "if 1:\nx": (
        '  File "solution.py", line 2\n    x\n'
        "IndentationError: expected an indented block after 'if' statement on line 1"
    ),
    "import heapq\nheapq.nsmallest(2, [1, 'a'])": (
        "Traceback (most recent call last):\n"
        '  File "solution.py", line 2, in <module>\n'
        "    heapq.nsmallest(2, [1, 'a'])\n"
        "TypeError: '<' not supported between instances of 'str' and 'int'"
    ),
    "def f(n):\n    return f(n + 1)\nf(0)": (
        "Traceback (most recent call last):\n"
        '  File "solution.py", line 3, in <module>\n    f(0)\n'
        '  File "solution.py", line 2, in f\n    return f(n + 1)\n'
        '  File "solution.py", line 2, in f\n    return f(n + 1)\n'
        "  ...\n"
        '  File "solution.py", line 2, in f\n    return f(n + 1)\n'
        '  File "solution.py", line 2, in f\n    return f(n + 1)\n'
        '  File "solution.py", line 2, in f\n    return f(n + 1)\n'
        "RecursionError: maximum recursion depth exceeded"
    ),
    "class E(Exception): pass\nraise E": (
        'Traceback (most recent call last):\n  File "solution.py", line 2, in <module>\n    raise E\nE'
    ),
    "import decimal\nraise decimal.InvalidOperation('no')": (
        'Traceback (most recent call last):\n  File "solution.py", line 2, in <module>\n'
        "    raise decimal.InvalidOperation('no')\ndecimal.InvalidOperation: no"
    ),
}


@pytest.mark.parametrize("source", GOLDEN)
def test_golden_text(source):
    assert trace(source) == GOLDEN[source]


def test_a_hostile_message_is_survived_and_a_long_one_marked():
    hostile = "class E(Exception):\n    def __str__(self): raise ValueError\nraise E"
    assert trace(hostile).endswith("E: <exception str() failed>")
    assert trace("raise ValueError('x' * 1000)").endswith("x...[500 characters cut]")


@pytest.mark.parametrize("source", GOLDEN)
def test_the_worker_writes_the_same_text(run, source):
    (result,) = run(source)
    assert result.error == GOLDEN[source]
