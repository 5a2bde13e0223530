"""Stack traces for feedback: golden texts, equal under this Python and the judge's."""

import subprocess
import textwrap

import pytest

from rlef_jax.execution.traceback_text import format_exception
from rlef_jax.types import Status


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
    "x = 1\ny = 2\nif x = = y:\n    pass": (
        '  File "solution.py", line 3\n    if x = = y:\n         ^\nSyntaxError: invalid syntax'
    ),
    "if 1:\nx": (
        '  File "solution.py", line 2\n    x\n    ^\n'
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


DO_NOT_PARSE = [
    "x = = 1", "if x:\n\t\ty = = 2", "print(7", "print('a", "def f():\n\treturn\n  x", "if x:\n    y\n   z", "\tx = 1",
    "print 'hello'", "x = (1,\n 2\ny = 3", "a b", "x = 1 +", "x = 0777", "f(x\n  , y) = 3", "a, b += 1", "'''abc",
    "x = 1\\ 2", "# ok\n\n\n)", "def f(:\n pass", "lambda: (yield) = 1", "f(a for a in b, c)", "f'{a b}'",
    "print(7)\x0c\n\x0c  x = = 1", "x = {1: 2, 3}\r\nprint(x)\r\n", "del f(), (1\n+2)", "x = 1;\ny = '\\x'",
    # What the compiler finds after the parser: it looks for the line in the file.
    "return 5", "def f(a, a): pass", "for x in y:\n    pass\nelse:\n    continue", "await x", "nonlocal x",
    "from __future__ import nope", "def f():\n    print(x)\n    global x", "if 1:\n  break",
]  # fmt: skip


@pytest.mark.parametrize("source", DO_NOT_PARSE)
def test_a_syntax_error_is_what_python_prints(run, interpreter, source, tmp_path):
    (tmp_path / "solution.py").write_bytes(source.encode())
    command = [str(interpreter.path), "-B", "solution.py"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60).stderr
    (result,) = run(source)
    assert result.status is Status.SYNTAX_ERROR
    assert result.error + "\n" == printed.replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("source", GOLDEN)
def test_the_worker_writes_the_same_text(run, source):
    (result,) = run(source)
    assert result.error == GOLDEN[source]
