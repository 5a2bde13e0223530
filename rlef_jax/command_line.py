"""Command lines: arguments of the config-driven entry points, and errors as one line with an exit code."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from rlef_jax import arguments, overrides
from rlef_jax.config import load
from rlef_jax.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_STOPPED, ConfigError, RunError, StoppedError

TRACEBACK = "RLEF_JAX_TRACEBACK"  # set it in the environment to see where an error came from


@contextlib.contextmanager
def errors_as_lines() -> Iterator[None]:
    """Ends the program with one line on stderr for what a user can mend; what is our own fault keeps its traceback."""
    arguments.tolerate_any_text()
    try:
        yield
        sys.stdout.flush()  # a failed write (a full disk) is reported here; at exit it couldn't be
    except Exception as error:
        if not isinstance(error, ConfigError | RunError | StoppedError | OSError) and not _is_device_full(error):
            raise
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        print(_line_of(error), file=sys.stderr, flush=True)
        sys.exit(_exit_code(error))


def _is_device_full(error: Exception) -> bool:
    """Whether it is JAX's error of a device without memory. Commands that need no device don't import JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _line_of(error: Exception) -> str:
    if isinstance(error, StoppedError):
        return f"stopped: {error}"
    if _is_device_full(error):
        advice = 'lower ppo.microbatch_rows or sampling.rows, or set model.remat="full"'
        return f"error: the device is out of memory: {advice} ({str(error).splitlines()[0]})"
    return f"error: {error}"


def _exit_code(error: Exception) -> int:
    kinds = ((StoppedError, EXIT_STOPPED), (ConfigError, EXIT_BAD_INPUT))
    return next((code for kind, code in kinds if isinstance(error, kind)), EXIT_FAILED)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; `overrides` holds what `--config.KEY=VALUE` gave. Raises ConfigError for values of another type.

    Exits, with one line on stderr, for arguments that the parser doesn't know.
    """
    values, rest = overrides.extract(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(rest)
    args.overrides = values
    return args


def config_parser(description: str | None = None) -> arguments.Parser:
    """A parser with --config (a file under configs/, `:variant` after it) and --workdir."""
    parser = arguments.Parser(description=description, epilog=overrides.__doc__)
    parser.add_argument("--config", help="config file, e.g. configs/tiny.py or configs/tiny.py:single_turn")
    parser.add_argument("--workdir", type=arguments.path, help="folder for metrics, checkpoints, episodes and plots")
    return parser


def main(fn: Callable[[ConfigDict, Path], None], parser: argparse.ArgumentParser | None = None) -> None:
    """Runs `fn(config, workdir)` with the command line's configuration; see `errors_as_lines` for the exit codes."""
    with_arguments(lambda config, args: fn(config, args.workdir), parser or config_parser())


def with_arguments(fn: Callable[[ConfigDict, argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """As `main`, for a function that takes all arguments of a parser made from `config_parser`."""
    logging.set_verbosity(logging.FATAL)  # or JAX and Orbax talk of every backend and folder they look at
    with errors_as_lines():
        args = parse(parser)
        for name in ("config", "workdir"):
            if not getattr(args, name):
                raise ConfigError(f"--{name} is needed, e.g. --config=configs/tiny.py --workdir=runs/x")
        fn(load(args.config, overrides=args.overrides), args)
