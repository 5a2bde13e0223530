"""Right programs: what passes all tests, and indentation that changes no meaning."""

from __future__ import annotations

import ast
import dataclasses

import pytest

from rlef_jax.data import mini_contests
from rlef_jax.supervised.programs import RightPrograms, evenly_indented
from rlef_jax.types import Limits, TestCase

UNEVEN = '''def f(x):
  # of x
  if x:
  \treturn [x,
   1]
  text = """
 kept
"""
  return text
class A:
        def g(self): return 1
        # the last
'''
EVEN = '''def f(x):
    # of x
    if x:
        return [x,
   1]
    text = """
 kept
"""
    return text
class A:
    def g(self): return 1
    # the last
'''


def test_each_level_has_four_spaces_and_brackets_and_strings_stay():
    assert evenly_indented(UNEVEN) == EVEN
    assert evenly_indented(EVEN) == EVEN


@pytest.mark.parametrize("program", ["print 2\n", "if x:\nprint(2)", "", "x = (", "def f():\n\treturn 1\n  # odd\n"])
def test_what_does_not_parse_stays_as_it_is_and_the_rest_means_the_same(program):
    changed = evenly_indented(program)
    try:
        tree = ast.dump(ast.parse(program))
    except SyntaxError:
        assert changed == program
    else:
        assert ast.dump(ast.parse(changed)) == tree


def test_programs_are_right_by_all_tests_and_judged_once(pool):
    problem = mini_contests.problem_at("train", 0, 0)
    [first, *_] = problem.public_tests
    cheat = f"print({first.output!r})"  # passes what is shown
    hidden = (*problem.private_tests, TestCase("1\n1\n", "nobody prints this"))
    solutions = (problem.solutions[0], cheat, "print(")
    programs = RightPrograms(pool, Limits(wall_s=10.0, memory_bytes=512 << 20))
    before = pool.stats()["tests"]
    both = [dataclasses.replace(problem, solutions=solutions),
            dataclasses.replace(problem, name="other", solutions=solutions, private_tests=hidden)]  # fmt: skip
    programs.judge(both)
    assert programs.of(both[0]) == (solutions[0],) and programs.of(both[1]) == ()
    judged = pool.stats()["tests"]
    programs.judge(both)
    assert pool.stats()["tests"] == judged > before
