"""Command lines: flags of the config-driven entry points, and errors as one line with an exit code."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from rlef_jax.config import check, leaf_keys, load, nearest_key
from rlef_jax.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_STOPPED, ConfigError, RunError, StoppedError

TRACEBACK = "RLEF_JAX_TRACEBACK"  # set it in the environment to see where an error came from


@contextlib.contextmanager
def errors_as_lines() -> Iterator[None]:
    """Ends the program with one line on stderr for what a user can mend; what is our own fault keeps its traceback."""
    try:
        yield
    except (ConfigError, RunError, StoppedError, OSError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        print(_line_of(error), file=sys.stderr, flush=True)
        sys.exit(_exit_code(error))


def _line_of(error: Exception) -> str:
    if isinstance(error, StoppedError):
        return f"stopped: {error}"
    if isinstance(error, jax.errors.JaxRuntimeError):
        advice = 'lower ppo.microbatch_rows or sampling.rows, or set model.remat="full"'
        return f"error: the device is out of memory: {advice} ({str(error).splitlines()[0]})"
    return f"error: {error}"


def _exit_code(error: Exception) -> int:
    kinds = ((StoppedError, EXIT_STOPPED), (ConfigError, EXIT_BAD_INPUT))
    return next((code for kind, code in kinds if isinstance(error, kind)), EXIT_FAILED)


def define_flags() -> None:
    """Defines --config (a file under configs/, `:variant` after it) and --workdir. Overrides are --config.KEY=VALUE."""
    config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/tiny.py or configs/tiny.py:single_turn.")
    flags.DEFINE_string("workdir", None, "Folder for metrics, checkpoints, episodes and plots.")


def main(fn: Callable[[ConfigDict, Path], None]) -> None:
    """Runs `fn(config, workdir)` with the command line's configuration; see `errors_as_lines` for the exit codes."""
    if "config" not in flags.FLAGS:
        try:
            define_flags()
        except flags.Error as error:  # it looks into --flagfile already
            _refuse(error)

    def run(_: Sequence[str]) -> None:
        logging.set_verbosity(logging.FATAL)  # or JAX and Orbax talk of every backend and folder they look at
        with errors_as_lines():
            fn(flags.FLAGS.config, Path(flags.FLAGS.workdir))

    app.run(run, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        _check_override_names(argv)
        rest = flags.FLAGS(argv)
        for name in ("config", "workdir"):
            if not getattr(flags.FLAGS, name):
                raise ConfigError(f"--{name} is needed, e.g. --config=configs/tiny.py --workdir=runs/x")
        if len(rest) > 1:
            raise ConfigError(f"unexpected argument {rest[1]!r}")
        check(flags.FLAGS.config)
    except (ConfigError, flags.Error) as error:
        _refuse(error)
    return rest


def _refuse(error: Exception) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def _check_override_names(argv: Sequence[str]) -> None:
    """ml_collections answers a misspelt or misplaced key with a stack trace; this answers in a line."""
    config, known = None, set[str]()
    for i, arg in enumerate(argv):
        if match := re.match(r"--?config(?:=(.*)|$)", arg):
            config = load(match[1] if match[1] is not None else "".join(argv[i + 1 : i + 2]))
            known = set(leaf_keys(config))
        elif match := re.match(r"--?(?:no)?config\.([\w.]*)", arg):
            if config is None:
                raise ConfigError(f"{arg} must come after --config=FILE")
            if match[1] in config and match[1] not in known:
                raise ConfigError(f"{match[1]!r} is a section; set one of its keys, as --config.{match[1]}.KEY=VALUE")
            if match[1] not in known:
                raise ConfigError(f"unknown key {match[1]!r}; did you mean --config.{nearest_key(match[1], config)}?")
