"""Recorded dialogues on CodeContests through the judge: python benchmarks/recorded.py --data=FOLDER [--quick]

Ten rollouts of three responses for each problem of a built folder's train, valid and test splits: stored solutions, the
same with one thing changed, and junk (no code, no Python, an answer that is never right). Public tests all run, hidden
ones until the first failure. A quarter of the problems and all of them show whether a step grows faster than the work:
the ratio is of the seconds a test at full size to those at a quarter. What the programs themselves take of the workers'
time is printed beside. One line of JSON at the end.
"""

from __future__ import annotations

import argparse
import ast
import collections
import json
import os
import random
import resource
import time
from collections.abc import Sequence

from rlef_jax import arguments
from rlef_jax.data.code_contests.build import read_plan
from rlef_jax.data.code_contests.reader import open_split
from rlef_jax.evaluation.recorded import Recorded, judge_recorded
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.types import Episode, Limits, Problem, Status, TestResult

JUNK = (None, "I am not sure", "print('no such answer')", "def f(:\n", "import sys\nsys.exit(3)\n")
_SWAPS: dict[type, type] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Add: ast.Sub, ast.Gt: ast.GtE, ast.Eq: ast.NotEq}


def mutant(program: str, rng: random.Random) -> str:
    """The program with one comparison, sum or number changed; as it is where it has none."""
    tree = ast.parse(program)
    places = [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS)
        or (isinstance(node, ast.BinOp) and type(node.op) in _SWAPS)
        or (isinstance(node, ast.Constant) and type(node.value) is int)
    ]
    if not places:
        return program
    node = rng.choice(places)
    if isinstance(node, ast.Compare):
        node.ops[0] = _SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp):
        node.op = _SWAPS[type(node.op)]()
    else:
        assert isinstance(node, ast.Constant) and isinstance(node.value, int)
        node.value += 1
    return ast.unparse(tree)


def rollouts(problems: Sequence[Problem], each: int, turns: int) -> list[Recorded]:
    """`each` dialogues of a problem: junk and mutants, and at the last turn a solution half of the time."""
    recorded = []
    for number, problem in enumerate(problems):
        rng = random.Random(number)
        for _ in range(each):
            program = rng.choice(problem.solutions)
            wrong = [rng.choice((*JUNK, mutant(program, rng), mutant(program, rng))) for _ in range(turns)]
            right = program if rng.random() < 0.5 else mutant(program, rng)
            recorded.append(Recorded(problem, (*wrong[: turns - 1], right)))
    return recorded


def results_of(episodes: Sequence[Episode]) -> list[TestResult]:
    """Of each test that was run, over all turns."""
    verdicts = [turn.verdict for e in episodes for turn in e.turns if turn.verdict is not None]
    return [result for v in verdicts for result in (*v.public, *v.hidden)]


def main() -> None:
    """Judges three sizes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=arguments.path, required=True, help="a folder that rlef_jax.data.code_contests has built"
    )
    parser.add_argument("--quick", action="store_true", help="16 problems")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one for each core")
    parser.add_argument("--wall-s", type=float, default=1.0, help="of a test where it has no limit (default: 1)")
    args = parser.parse_args()
    splits = read_plan(args.data)["splits"]
    problems = [p for split in splits for p in open_split(str(args.data), split) if p.solutions]
    random.Random(0).shuffle(problems)
    problems = problems[:16] if args.quick else problems
    results, per_test = [], []
    for share in (4, 1):
        work = rollouts(problems[: len(problems) // share], 10, 3)
        with ExecutionPool(args.workers, find_python("3.10")) as pool:
            began = time.perf_counter()
            episodes = judge_recorded(pool, work, Limits(wall_s=args.wall_s), max_turns=3)
            seconds = time.perf_counter() - began
        ran = results_of(episodes)
        per_test.append(seconds / len(ran))
        print(
            f"{len(work) // 10:>4} problems, {len(work)} rollouts, {sum(len(e.turns) for e in episodes)} responses:"
            f" {seconds:.0f} s, {len(ran)} tests, {len(ran) / seconds:.0f} tests/s,"
            f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB here at most;"
            f" {100 * sum(r.wall_s for r in ran) / seconds / args.workers:.0f} % of the workers' time in programs,"
            f" {sum(r.status is Status.TIME_LIMIT for r in ran)} tests out of time;"
            f" {sum(e.solved for e in episodes)} solved, ends {dict(collections.Counter(e.end for e in episodes))}",
            flush=True,
        )
        results.append({"case": f"{len(work) // 10} problems", "ours": len(ran) / seconds, "unit": "tests/s"})
    ratio = per_test[-1] / per_test[0]
    print(f"seconds a test, all problems to a quarter of them: {ratio:.2f}x")
    print(json.dumps({"benchmark": "recorded", "results": results, "growth": ratio}))


if __name__ == "__main__":
    main()
