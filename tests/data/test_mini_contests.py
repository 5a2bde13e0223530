"""MiniContests: problems are pure functions, solvable, and ambiguous where they claim to be."""

import collections
import dataclasses
import itertools
import os
import subprocess
import sys
import textwrap

import pytest

from rlef_jax.data import mini_contests
from rlef_jax.data.mini_contests import bounds as bounds_lib
from rlef_jax.data.mini_contests.build import FAMILIES, normalise, structure_held_out
from rlef_jax.data.mini_contests.readings import OPEN_QUESTIONS
from rlef_jax.data.mini_contests.stats import program_shapes
from rlef_jax.data.mini_contests.trusted import run_trusted
from rlef_jax.data.sources import Source, training_problems
from rlef_jax.dialog.extract import extract_code
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.judge import outputs_match
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.verdict import limits_for, submit_hidden, submit_public
from rlef_jax.types import Limits, Status

COUNT = 150


@pytest.fixture(scope="module")
def problems():
    return [mini_contests.problem_at("train", 3, i) for i in range(COUNT)]


def endless(program: str) -> bool:
    return "while True:\n    pass" in program or "10 ** 10" in program


def test_problem_is_the_same_in_another_process(problems):
    code = (
        "from rlef_jax.data.mini_contests import problem_at; print(repr([problem_at('train', 3, i) for i in range(4)]))"
    )
    env = {"PYTHONHASHSEED": "99", "PYTHONPATH": ":".join(p for p in sys.path if p) or "."}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert out.strip() == repr(problems[:4])


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="trian.*train"):
        mini_contests.problem_at("trian", 0, 0)


def test_a_fixed_split_of_some_families_has_as_many_problems():
    """All of these families, each statement once and in this split alone, also where none has a held-out shape."""
    some = ("two_numbers", "words")
    assert mini_contests.problem_at("test_500", 0, 0, some).tags["family"] in some  # of no held-out shape
    problems = mini_contests.eval_split("valid", some)
    assert len(problems) == 117 and {p.tags["family"] for p in problems} == set(some)
    statements = {p.description for p in problems}
    assert len(statements) == 117
    assert not statements & {mini_contests.problem_at("train", 0, i, some).description for i in range(100)}
    assert 0 < len(mini_contests.eval_split("valid", ("brackets",))) < 117  # it has so few statements


def test_even_questions_replace_their_share_of_problems(problems):
    even = [mini_contests.problem_at("train", 3, i, even_questions=1.0) for i in range(COUNT)]
    counts = collections.Counter(p.tags["question"] if p.tags["open"] else "" for p in even)
    assert counts.keys() == {"", *OPEN_QUESTIONS}
    assert min(counts.values()) >= 8  # of 17; binomially, one name in 100 such tests would have fewer
    half = [mini_contests.problem_at("train", 3, i, even_questions=0.5) for i in range(COUNT)]
    assert all(h in (p, e) for h, p, e in zip(half, problems, even, strict=True))
    assert 50 < sum(h == p for h, p in zip(half, problems, strict=True)) < 100
    with pytest.raises(ValueError, match="need all families"):
        mini_contests.problem_at("train", 3, 0, ("find",), even_questions=1.0)
    source = Source("mini_contests", even_questions=1.0)
    assert training_problems(source, "train", 3, 0, 4) == even[:4]


def test_reference_solves_and_incorrect_solutions_fail(problems):
    for p in problems:
        tests = p.public_tests + p.hidden_tests
        assert all(outputs_match(t.output, run_trusted(p.solutions[0], t.input).output) for t in tests), p.name
        for program in p.incorrect_solutions:
            if endless(program):
                continue
            # A slip that terminates on the public tests may not terminate on a hidden one.
            results = [run_trusted(program, t.input, guard=True) for t in tests]
            assert any(r.error or not outputs_match(t.output, r.output) for r, t in zip(results, tests, strict=True))


def test_readings_agree_on_the_example_and_nowhere_on_the_other_public_tests(problems):
    opened = [p for p in problems if p.tags["open"]]
    assert len(opened) > 0.6 * len(problems)
    assert {len(p.tags["readings"]) for p in opened} <= {5, 6}
    for p in opened:
        example, *telling = p.public_tests
        assert f"Input\n\n{example.input}\n\nOutput\n\n{example.output}" in p.description
        outputs = {run_trusted(r, example.input).output for r in p.tags["readings"]}
        assert len(outputs) == 1
        assert len(telling) == 2
        for test in telling:
            assert f"Input\n\n{test.input}\n\nOutput" not in p.description
            shown = [run_trusted(r, test.input).output for r in p.tags["readings"]]
            assert not any(outputs_match(x, y) for x, y in itertools.combinations(shown, 2))
        assert p.tags["readings"][p.tags["reading"]] == p.solutions[0]
        # The statement is the same for every reading, so it doesn't reveal the correct one.
        assert set(p.tags["readings"]) - {p.solutions[0]} <= set(p.incorrect_solutions)


def test_statements_belong_to_one_split(problems):
    held = [mini_contests.problem_at(split, 3, i) for split in ("valid", "test", "test_500") for i in range(20)]
    train = {p.description for p in problems}
    assert not train & {p.description for p in held}
    buckets = [mini_contests.stable_hash(p.description) % 20 for p in problems]
    assert max(buckets) < 11


def test_held_out_shapes_and_families_never_train(problems):
    assert not any(p.tags["structure_held_out"] for p in problems)
    apart = {f.name for f in FAMILIES if f.held_out}
    assert len(apart) == 3
    assert not apart & {p.tags["family"] for p in problems}
    scored_apart = [mini_contests.problem_at("held_out_families", 3, i) for i in range(12)]
    assert {p.tags["family"] for p in scored_apart} <= apart
    tests = [mini_contests.problem_at("test_500", 3, i) for i in range(60)]
    assert sum(p.tags["structure_held_out"] for p in tests) >= 0.15 * len(tests)
    assert not program_shapes([p for p in tests if p.tags["structure_held_out"]]) & program_shapes(problems)


def test_normalise_sees_shape_only():
    assert normalise("x = 1\nprint(x + 2)") == normalise("y = 5\nprint(y + 9)")
    assert normalise("print(x + 2)") != normalise("print(x - 2)")


def test_the_pool_agrees_with_the_trusted_runs(problems):
    """The judge's workers (Python 3.10) agree with the in-process runs that made the tests."""
    limits = Limits(memory_bytes=256 << 20)
    with ExecutionPool(2, find_python()) as pool:
        for p in problems[:25]:
            first = submit_public(pool, p.solutions[0], p, limits_for(p, limits)).result()
            final = submit_hidden(pool, p.solutions[0], p, first, limits_for(p, limits)).result()
            assert final.passed, (p.name, final)
        for text, status in (("while True:\n    pass", Status.TIME_LIMIT), ("10 ** 10", Status.MEMORY_LIMIT)):
            p, program = next((p, s) for p in problems for s in p.incorrect_solutions if text in s)
            assert submit_public(pool, program, p, limits_for(p, limits)).result().status is status


def test_all_ways_to_fail_are_there(problems):
    kinds = set()
    for p in problems:
        for program in p.incorrect_solutions:
            if "while True:\n    pass" in program:
                kinds.add("endless")
            elif "10 ** 10" in program:
                kinds.add("memory")
            else:
                kinds.add("exception" if run_trusted(program, p.public_tests[0].input).error else "wrong")
    assert kinds == {"endless", "memory", "exception", "wrong"}
    assert extract_code("I do not know.") is None


def brute_force_full(game, turns=3):
    """The best 1@3 over all strategies, by a tree search written independently and without caching."""
    count = len(game.solved)

    def play(possible, left):
        scores = []
        for answer in range(count):
            if left == 1:
                scores.append(sum(game.solved[r][answer] for r in possible))
                continue
            score = sum(game.solved[r][answer] for r in possible if game.public[r][answer])
            open_ones = [r for r in possible if not game.public[r][answer]]
            for text in {game.message[r][answer] for r in open_ones}:
                score += play([r for r in open_ones if game.message[r][answer] == text], left - 1)
            scores.append(score)
        return max(scores)

    return play(list(range(count)), turns) / count


def test_bounds_by_hand(problems):
    p = next(p for p in problems if p.tags["open"] and len(p.tags["readings"]) == 6)
    game = bounds_lib.game_of(p)
    assert bounds_lib.best_without_feedback(game) == pytest.approx(1 / 6)
    assert bounds_lib.best_with_stops(game, shown=False) == pytest.approx(3 / 6)
    assert bounds_lib.best_with_stops(game, shown=True) == pytest.approx(1.0)
    assert brute_force_full(game) == pytest.approx(1.0)
    blind = dataclasses.replace(game, message=tuple(tuple("x" if m else "" for m in row) for row in game.message))
    assert bounds_lib.best_with_stops(blind, shown=True) == pytest.approx(3 / 6)


def test_each_step_of_feedback_is_worth_fifteen_points(problems):
    percentages = bounds_lib.bounds(problems[:60])
    assert percentages["pass_fail"] - percentages["no_feedback"] >= 15
    assert percentages["full"] - percentages["pass_fail"] >= 15


def test_structure_of_a_family_that_is_not_composed_is_never_held_out():
    import numpy as np

    from rlef_jax.data.mini_contests.build import draw_spec

    rng = np.random.default_rng(0)
    plain = [f for f in FAMILIES if not f.composed]
    assert not any(structure_held_out(draw_spec(rng, plain)) for _ in range(200))


def test_problems_are_the_same_in_every_process():
    """Each family's problems are fully equal under two hash seeds, which change the order of sets."""
    program = """
        import hashlib
        import numpy as np
        from rlef_jax.data.mini_contests.build import FAMILIES, build_problem, draw_spec
        digest = hashlib.blake2b()
        for family in FAMILIES:
            rng = np.random.default_rng(7)
            for _ in range(10):
                digest.update(repr(build_problem(draw_spec(rng, (family,)), rng, lambda text: True)).encode())
        print(digest.hexdigest())
        """
    digests = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1
