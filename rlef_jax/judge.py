"""Judges programs on a problem's tests: `python -m rlef_jax.judge PROGRAM --problem SOURCE [--name NAME]`.

PROGRAM is a Python file, or a folder whose `*.py` files are judged one by one. Each is decoded as Python does it (byte
order mark, encoding line) and runs as with `python PROGRAM`, in the sandbox of docs/executor.md. SOURCE is a
CodeContests parquet shard, an EvalPlus OriginFmt file (.jsonl.gz), a JSON file of a problem, or mini_contests:SPLIT.
Prints one table per program (test, status, time, memory, expected and got) or, with --json, one line of JSON per
program.

Exit code: 0 all programs passed all tests, 1 some failed, 2 wrong usage or data, 3 the judge itself broke.

`python -m rlef_jax.judge --isolation-report` lists the levels of isolation, with the reason for those not available.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import pathlib
import signal
import sys
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

from rlef_jax import arguments
from rlef_jax.data.problem_files import ProblemFileError, find_problem
from rlef_jax.data.running import runner_of
from rlef_jax.errors import ConfigError
from rlef_jax.execution import kernel
from rlef_jax.execution.cores import auto_workers, usable_cores
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.isolation import LEVELS, IsolationError
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.results import JudgeOptions
from rlef_jax.execution.verdict import limits_for
from rlef_jax.execution.worker_factory import trial
from rlef_jax.types import FunctionTest, Limits, Problem, Status, Test, TestResult

PASSED, FAILED, USAGE, BROKEN = range(4)  # exit codes
_SHOWN_CHARS = 60  # length of the expected and observed output shown in the table


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the pool is closed
    try:
        code = _run(args)
        sys.stdout.flush()
        return code
    except (ConfigError, IsolationError, OSError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return USAGE


def _run(args: argparse.Namespace) -> int:
    """Runs the command that the arguments select. Returns the exit code."""
    if args.isolation_report:
        print(isolation_report(args.python))
        return PASSED
    if args.program is None or args.problem is None:
        raise ProblemFileError("PROGRAM and --problem are needed; --help says more")
    return _judge(args)


def _parser() -> arguments.Parser:
    parser = arguments.Parser(prog="python -m rlef_jax.judge", description=__doc__)
    parser.add_argument("program", type=arguments.path, nargs="?", help="a Python file, or a folder of them")
    parser.add_argument("--problem", type=arguments.path_or_name, help="where the problem is")
    parser.add_argument("--name", default="", help="its name, or EvalPlus task id, where the source holds several")
    parser.add_argument("--tests", choices=("all", "public", "hidden"), default="all")
    parser.add_argument("--stop-at-first-failure", action="store_true")
    parser.add_argument("--json", action="store_true", help="one line of JSON per program")
    parser.add_argument(
        "--python", type=arguments.path_or_name, default="3.10", help="version that programs run under, with the"
        " standard library only (default: 3.10); or the path of an interpreter, whose packages they may import"
    )  # fmt: skip
    parser.add_argument("--wall-s", type=float, default=10.0, help="where the problem has no time limit (default: 10)")
    parser.add_argument("--wall-patience", type=float, default=10.0, help="as config.execution.wall_patience")
    parser.add_argument("--memory-mb", type=int, default=1024, help="where it has no memory limit (default: 1024)")
    parser.add_argument("--workers", type=int, default=0, help="programs at a time; 0 leaves a core free")
    parser.add_argument("--require-isolation", default="", choices=("", *(level.value for level in LEVELS)))
    parser.add_argument("--stdout-only", action="store_true", help="the paper's way: crashes after the answer pass")
    parser.add_argument("--doubles", action="store_true", help="the paper's way: integers compare as doubles")
    parser.add_argument("--isolation-report", action="store_true", help="which levels are available here")
    return parser


def isolation_report(python: str = "3.10") -> str:
    """The isolation levels after trying each: the one in use, and the reasons why others aren't available."""
    interpreter = find_python(python)
    plans = {level: trial(level, interpreter) for level in LEVELS}
    best = next((level for level in LEVELS if not isinstance(plans[level], str)), None)
    packages = f", packages in {', '.join(interpreter.packages)}" if interpreter.packages else ""
    lines = [
        f"user {os.geteuid()}, Linux {os.uname().release}, {interpreter.path} ({interpreter.version}){packages}",
        f"{usable_cores():g} of {os.cpu_count()} cores may be used: {auto_workers()} workers if --workers is 0",
    ]
    for level in LEVELS:
        reason = plans[level]
        mark = "used     " if level is best else "available" if not isinstance(reason, str) else "no       "
        lines.append(f"  {level.value:11} {mark} {reason if isinstance(reason, str) else _parts(reason.settings)}")
    if best is None:
        lines.append("programs can't be run here")
    return "\n".join(lines)


def _parts(settings: Any) -> str:
    """The mechanisms of a level, as text."""
    parts = ["user, mount, pid, net, ipc and uts namespaces, read-only root"] if settings["namespaces"] else []
    parts += ["users of their own"] if settings["program_uid"] is not None else []
    parts += ["cgroup for memory"] if settings["cgroup"] else ["one process per program"]
    parts += ["seccomp"] if settings["filter"] else []
    parts += [f"Landlock {kernel.landlock_version()}"] if settings["landlock"] else ["no Landlock in this kernel"]
    return ", ".join([*parts, "rlimits"])


def _judge(args: argparse.Namespace) -> int:
    files = sorted(args.program.glob("*.py")) if args.program.is_dir() else [args.program]
    if not files:
        raise ProblemFileError(f"no programs in {args.program}")
    texts = list(map(_program_text, files))
    codes = [PASSED]
    with ExecutionPool(
        args.workers or auto_workers(),
        find_python(args.python),
        require=args.require_isolation,
        options=JudgeOptions(clean_exit=not args.stdout_only, exact_integers=not args.doubles),
    ) as pool:
        problem = find_problem(args.problem, args.name, runner_of(pool))
        tests = _tests(problem, args.tests)
        if not tests:
            raise ProblemFileError(f"{problem.name}: no tests to run")
        default = Limits(wall_s=args.wall_s, memory_bytes=args.memory_mb << 20, wall_patience=args.wall_patience)
        run_options = {"frame": problem.frame, "stop_at_first_failure": args.stop_at_first_failure}
        futures = [pool.run(text, tests, limits_for(problem, default), **run_options) for text in texts]
        for file, future in zip(files, futures):
            results = future.result()
            print(_as_json(file, problem.name, results) if args.json else _as_table(file, problem.name, tests, results))
            statuses = {result.status for result in results}
            codes.append(
                BROKEN if Status.INFRA_ERROR in statuses else FAILED if statuses != {Status.PASSED} else PASSED
            )
    return max(codes)


def _program_text(file: pathlib.Path) -> str:
    """A program's text, decoded as Python does it: as UTF-8, or by its encoding line."""
    data = file.read_bytes()
    try:
        return data.decode(tokenize.detect_encoding(io.BytesIO(data).readline)[0])
    except (SyntaxError, UnicodeDecodeError):
        return data.decode("utf-8", "surrogateescape")  # undecodable bytes become a syntax error


def _tests(problem: Problem, which: str) -> tuple[Test, ...]:
    """All tests, only the public ones, or only the hidden ones (`Problem.hidden_tests`)."""
    return {"all": problem.tests, "public": problem.public_tests, "hidden": problem.hidden_tests}[which]


def _as_json(file: pathlib.Path, name: str, results: Sequence[TestResult]) -> str:
    passed = all(result.status is Status.PASSED for result in results)
    rows = [dataclasses.asdict(result) for result in results]
    return json.dumps({"program": str(file), "problem": name, "passed": passed, "tests": rows}, allow_nan=False)


def _as_table(file: pathlib.Path, name: str, tests: Sequence[Test], results: Sequence[TestResult]) -> str:
    passed = sum(result.status is Status.PASSED for result in results)
    lines = [f"{file}: {passed} of {len(results)} tests passed ({name})"]
    lines.append(f"{'test':>5}  {'status':13} {'exit':>5} {'wall s':>7} {'cpu s':>7} {'MB':>5}")
    for number, (test, result) in enumerate(zip(tests, results), start=1):
        code = "" if result.exit_code is None else result.exit_code
        measured = f"{code:>5} {result.wall_s:7.3f} {result.cpu_s:7.3f} {result.memory_bytes >> 20:5}"
        lines.append(f"{number:5}  {result.status.value:13} {measured}")
        lines += [f"       {line}" for line in _difference(test, result)]
    return "\n".join(lines)


def _difference(test: Test, result: TestResult) -> Iterator[str]:
    """The first differing line of the expected and the observed output; else the end of the error's text."""
    if result.status is Status.PASSED:
        return
    if isinstance(test, FunctionTest) or result.status is not Status.WRONG_ANSWER:
        yield from _lines(result.error)[-8:]
        return
    expected, observed = _lines(test.output), _lines(result.stdout)
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, observed)) if a.split() != b.split()),
        min(len(expected), len(observed)),
    )
    for label, lines in (("expected", expected), ("got", observed)):
        line = lines[at] if at < len(lines) else "(nothing)"
        cut = f"...[{len(line) - _SHOWN_CHARS} characters cut]" if len(line) > _SHOWN_CHARS else ""
        yield f"line {at + 1} {label:8} {line[:_SHOWN_CHARS]}{cut}"


def _lines(text: str) -> list[str]:
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


if __name__ == "__main__":
    sys.exit(main())
