"""A program runs as in its own file: texts that readers, benchmarks or the judge add don't change it."""

import json

import pytest

from rlef_jax import judge
from rlef_jax.types import FunctionTest, Limits, Status, TestCase

LIMITS = Limits(wall_s=30.0, memory_bytes=256 << 20)
FRAME = "from math import *\n", "\n\nSolution = Solution\n"


def ended(pool, program, *tests, **options):
    return pool.run(program, tests or [TestCase("3 4\n", "7\n")], LIMITS, **options).result(60)


@pytest.mark.parametrize(
    "program",
    [
        "\ufeffprint(7)",
        "\ufeff# -*- coding: utf-8 -*-\nprint(7)",
        "# -*- coding: latin-1 -*-\nassert len('é') == 1\nprint(7)",  # a text has been read already
        '"""Seven."""\nfrom __future__ import annotations\nassert __doc__ == "Seven."\nprint(7)',
        "print(len(str(10**5000)) - 4994)",
        "print(int('9' * 5000) % 10 - 2)",
    ],
)
def test_as_a_file_of_its_own(pool, program):
    (result,) = ended(pool, program)
    assert result.status is Status.PASSED, result


@pytest.mark.parametrize(
    "program",
    [
        "from __future__ import annotations\nclass Solution:\n    def f(self, x: Undefined): return floor(x)\n",
        '"""Doc."""\nfrom __future__ import annotations\nassert __doc__ == "Doc."\nclass Solution:\n'
        "    def f(self, x): return floor(x)\n",
        "\ufeffclass Solution:\n    def f(self, x): return floor(x)",
    ],
)
def test_a_frame_is_beside_the_program(pool, program):
    test = FunctionTest("Solution().f", ((7.5,),), (7,))
    after = FRAME[1] + "globals()['Solution().f'] = Solution().f\n"
    (result,) = ended(pool, program, test, frame=(FRAME[0], after))
    assert result.status is Status.PASSED, result


def test_errors_of_a_framed_program_name_its_own_lines(pool):
    (result,) = ended(pool, "x = 1\n1 / 0", frame=FRAME)
    assert result.error.startswith('Traceback (most recent call last):\n  File "solution.py", line 2, in <module>\n')
    assert "    1 / 0\n" in result.error
    (result,) = ended(pool, "x = 1\nprint(", frame=FRAME)
    assert result.status is Status.SYNTAX_ERROR and "line 2" in result.error


def test_lines_end_where_python_ends_them(pool):
    (result,) = ended(pool, "s = 'a\x0cb\x1cc\u2028d\x85e'\r\nt = 2\r1 / 0")
    assert "line 3, in <module>\n    1 / 0\n" in result.error


def test_flags_of_one_text_are_not_another_ones(pool):
    frame = "from __future__ import annotations\n", ""
    (result,) = ended(pool, "def f(x: Undefined): pass", frame=frame)
    assert "NameError" in result.error


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfprint(sum(map(int, input().split())))\n",
        b"# coding: latin-1\nassert len('\xe9\xe8') == 2\nprint(sum(map(int, input().split())))\n",
        b"#!/usr/bin/python\n# vim: set fileencoding=cp1252 :\ns = '\x80'\nassert s == chr(0x20ac)\nprint(7)\n",
    ],
)
def test_files_are_read_as_python_reads_them(tmp_path, capsys, data):
    (tmp_path / "program.py").write_bytes(data)
    (tmp_path / "sum.json").write_text(json.dumps({"name": "s", "public_tests": [{"input": "3 4\n", "output": "7\n"}]}))
    assert judge.main([str(tmp_path / "program.py"), "--problem", str(tmp_path / "sum.json")]) == judge.PASSED
    capsys.readouterr()


def test_what_is_no_text_is_a_syntax_error(tmp_path, capsys):
    (tmp_path / "program.py").write_bytes(b"print('\xe9')\n")
    (tmp_path / "sum.json").write_text(json.dumps({"name": "s", "public_tests": [{"input": "3 4\n", "output": "7\n"}]}))
    assert judge.main([str(tmp_path / "program.py"), "--problem", str(tmp_path / "sum.json")]) == judge.FAILED
    assert "SYNTAX_ERROR" in capsys.readouterr().out


def test_a_lone_surrogate_is_an_ordinary_test(pool):
    (result,) = ended(pool, "print(len(input()))", TestCase("a\ud800\n", "4\n"))
    assert result.status is Status.PASSED  # three bytes that are no UTF-8, each read as one character
    (result,) = ended(pool, "print(ascii(input()))", TestCase("a\udce9\n", "'a\\udce9'"))
    assert result.status is Status.PASSED  # a byte of a file that is no UTF-8
    (result,) = ended(pool, "def f(): return 'a\\n\\ud800'", FunctionTest("f", ((),), ("a\nb",)))
    assert result.status is Status.WRONG_ANSWER
    result.error.encode()
