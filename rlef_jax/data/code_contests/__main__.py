"""Builds CodeContests: python -m rlef_jax.data.code_contests --source=FOLDER --output=FOLDER

SOURCE holds the release: the parquet files of deepmind/code_contests on Hugging Face (train-*.parquet, ...), or JSON
lines of the ContestProblem proto (train.jsonl or .jsonl.gz, ...). Some of the files are enough: only their splits are
built. The same command continues an interrupted build; for a finished one it prints the table again.

Exit codes: 0 built, 1 it could not be written, 2 wrong usage or data, 75 stopped by Ctrl-C.
"""

from __future__ import annotations

import signal
import time

from rlef_jax import arguments
from rlef_jax.command_line import errors_as_lines
from rlef_jax.data.code_contests.build import build
from rlef_jax.data.code_contests.counts import table
from rlef_jax.errors import ConfigError, StoppedError
from rlef_jax.progress import ProgressDisplay


def main() -> None:
    """Builds the data set and prints the table of its counts."""
    parser = arguments.Parser(prog="python -m rlef_jax.data.code_contests", description=__doc__)
    parser.add_argument("--source", type=arguments.path, required=True, help="folder with the release")
    parser.add_argument(
        "--output", type=arguments.path, required=True, help="the data folder; config.data.dir names it"
    )
    parser.add_argument("--solutions", type=int, default=10, help="Python 3 solutions kept of a problem (default: 10)")
    parser.add_argument(
        "--incorrect", type=int, default=10, help="incorrect Python 3 programs kept of a problem (default: 10)"
    )
    began = time.perf_counter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with errors_as_lines(), ProgressDisplay() as display:
        args = parser.parse_args()
        for name in ("solutions", "incorrect"):
            if getattr(args, name) < 0:
                raise ConfigError(f"--{name}: 0 or more; it is {getattr(args, name)}")
        try:
            counts = build(
                args.source, args.output, solutions=args.solutions, incorrect=args.incorrect,
                report=lambda split, share: display.stage(f"{split} (%)", int(100 * share), 100),
            )  # fmt: skip
        except KeyboardInterrupt as error:
            raise StoppedError("the same command goes on with the missing shards") from error
        display.message(table(counts))
        display.message(f"{args.output}: built in {time.perf_counter() - began:.0f} s; set config.data.dir to it")


if __name__ == "__main__":
    main()
