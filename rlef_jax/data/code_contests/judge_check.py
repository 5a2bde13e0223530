"""Runs reference solutions on their own tests: python -m rlef_jax.data.code_contests.judge_check --data=FOLDER

Measures how often the judge fails a program that is known to be correct, and why: the data has one of several right
answers, the limits, Python 2 code labelled Python 3, files instead of standard input, a crash. Writes
judge_check_SPLIT.json to the data folder. config.data.exclude=("references_fail",) reads it, and evaluation prints it
beside its scores. The same command continues an interrupted check.

Exit codes: 0 done, 1 it could not be written, 2 wrong usage or data, 75 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import collections
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rlef_jax import arguments
from rlef_jax.command_line import errors_as_lines
from rlef_jax.data.code_contests import references
from rlef_jax.data.code_contests.build import read_plan
from rlef_jax.data.code_contests.reader import open_split
from rlef_jax.data.code_contests.references import Checked
from rlef_jax.errors import ConfigError, StoppedError
from rlef_jax.execution.cores import auto_workers
from rlef_jax.execution.interpreter import InterpreterNotFoundError, find_python
from rlef_jax.execution.isolation import IsolationError
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.verdict import limits_for
from rlef_jax.files import write_json
from rlef_jax.progress import ProgressDisplay
from rlef_jax.types import Limits, Problem, TestResult


def check(
    folder: Path,
    split: str,
    pool: ExecutionPool,
    judged_with: dict[str, Any],
    *,
    solutions: int,
    limits: Limits,
    ahead: int,
    report: Callable[[int, int], None] | None = None,
) -> references.Report:
    """Runs the problems that haven't been run yet and writes the report.

    Args:
      judged_with: the settings that results depend on; stored results with other settings are dropped.
      solutions: largest number of solutions run per problem.
      limits: for problems without limits of their own.
      ahead: problems in the pool at a time.
      report: called with (problems done, all problems).

    Raises ConfigError if the data can't be read.
    """
    problems = open_split(str(folder), split)
    journal = references.report_path(folder, split).with_suffix(".part.jsonl")
    header = {"judged_with": judged_with, "data": read_plan(folder)["source"], "problems": len(problems)}
    resumed = _read_journal(journal, header)
    with open(journal, "w", encoding="utf-8") as file:  # rewritten without an incomplete last line
        for line in (header, *([p.name, list(p.reasons)] for p in resumed)):
            file.write(json.dumps(line) + "\n")
        checks = list(resumed)
        todo = (problems[i] for i in range(len(resumed), len(problems)))
        for checked in _run(todo, pool, solutions, limits, ahead):
            file.write(json.dumps([checked.name, list(checked.reasons)]) + "\n")
            file.flush()
            checks.append(checked)
            if report is not None:
                report(len(checks), len(problems))
    result = references.Report(split, judged_with, tuple(checks))
    write_json(references.report_path(folder, split), references.to_json(result))
    journal.unlink()
    return result


def _run(
    problems: Iterator[Problem], pool: ExecutionPool, solutions: int, limits: Limits, ahead: int
) -> Iterator[Checked]:
    """The problems' results, in order; up to `ahead` problems run at a time."""
    waiting: collections.deque[tuple[Problem, list[Future[tuple[TestResult, ...]]]]] = collections.deque()

    def take() -> Checked:
        problem, futures = waiting.popleft()
        return Checked(problem.name, tuple(references.reason(problem, future.result()) for future in futures))

    for problem in problems:
        problem_limits = limits_for(problem, limits)
        programs = problem.solutions[:solutions] if problem.tests else ()
        futures = [pool.run(text, problem.tests, problem_limits, stop_at_first_failure=True) for text in programs]
        waiting.append((problem, futures))
        if len(waiting) >= ahead:
            yield take()
    while waiting:
        yield take()


def _read_journal(path: Path, header: dict[str, Any]) -> list[Checked]:
    """The results of an interrupted check; [] if its data or settings differ."""
    if not path.is_file():
        return []
    first, *rest = path.read_text(encoding="utf-8").split("\n")
    checks = []
    try:
        if json.loads(first) != header:
            return []
        for line in rest[:-1]:  # the text after the last newline is empty or an incomplete line
            name, reasons = json.loads(line)
            checks.append(Checked(name, tuple(reasons)))
    except (ValueError, TypeError):
        pass  # problems from this line on are run again
    return checks


def table(report: references.Report) -> str:
    """The report's counts as a text table."""
    totals = references.counts(report)
    lines = [f"{'':<24}{'problems':>10}{'solutions':>11}"]
    lines.append(
        f"{'with a reference':<24}{totals['problems'] - totals['without_reference']:>10}{totals['solutions']:>11}"
    )
    lines.append(f"{'none passes / failing':<24}{totals['problems_failing']:>10}{totals['solutions_failing']:>11}")
    for why in references.REASONS:
        both = totals["problems_failing_why"].get(why, 0), totals["solutions_failing_why"].get(why, 0)
        if any(both):
            lines.append(f"  {why:<22}{both[0]:>10}{both[1]:>11}")
    return "\n".join(lines)


def _parser() -> arguments.Parser:
    parser = arguments.Parser(prog="python -m rlef_jax.data.code_contests.judge_check", description=__doc__)
    parser.add_argument(
        "--data", type=arguments.path, required=True, help="a folder that python -m rlef_jax.data.code_contests built"
    )
    parser.add_argument("--split", default="", help="default: each of the folder's")
    parser.add_argument("--solutions", type=int, default=3, help="reference solutions of a problem (default: 3)")
    parser.add_argument(
        "--python",
        type=arguments.path_or_name,
        default="3.10",
        help="version of Python that programs run under (default: 3.10)",
    )
    parser.add_argument("--wall-s", type=float, default=10.0, help="where a problem has no time limit (default: 10)")
    parser.add_argument("--memory-mb", type=int, default=1024, help="where it has no memory limit (default: 1024)")
    parser.add_argument("--wall-patience", type=float, default=10.0, help="as config.execution.wall_patience")
    parser.add_argument("--workers", type=int, default=0, help="programs at a time; 0 leaves a core free")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Checks the splits one by one, and prints a table for each."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with errors_as_lines(), ProgressDisplay() as display:
        args = _parser().parse_args(argv)
        if args.solutions < 1 or args.memory_mb < 1 or args.workers < 0 or not (args.wall_s > 0 < args.wall_patience):
            raise ConfigError("--solutions, --memory-mb, --wall-s, --wall-patience: above 0; --workers: 0 or more")
        splits = list(read_plan(args.data)["splits"])
        if args.split and args.split not in splits:
            raise ConfigError(f"--split: {args.split!r} is none of {', '.join(splits)}")
        limits = Limits(wall_s=args.wall_s, memory_bytes=args.memory_mb << 20, wall_patience=args.wall_patience)
        try:
            interpreter, workers = find_python(args.python), args.workers or auto_workers()
            judged_with = {
                "solutions": args.solutions, "python": args.python, "wall_s": args.wall_s, "memory_mb": args.memory_mb,
                "wall_patience": args.wall_patience,
            }  # fmt: skip
            with ExecutionPool(workers, interpreter) as pool:
                for split in [args.split] if args.split else splits:
                    result = check(
                        args.data, split, pool, judged_with, solutions=args.solutions, limits=limits,
                        ahead=4 * workers, report=lambda done, total: display.stage("references", done, total),
                    )  # fmt: skip
                    display.message(f"{split}\n{table(result)}\n{references.error_rate_line(args.data, split)}")
        except KeyboardInterrupt as error:
            raise StoppedError("the same command goes on from there") from error
        except (InterpreterNotFoundError, IsolationError) as error:
            raise ConfigError(str(error)) from error


if __name__ == "__main__":
    main()
