"""What ends a command in one line instead of a traceback, and with which exit code (docs/runs.md)."""

from __future__ import annotations

EXIT_FAILED = 1  # the run could not go on: RunError, or an error of the file system
EXIT_BAD_INPUT = 2  # ConfigError
EXIT_STOPPED = 75  # stopped by a signal after saving: the same command goes on (EX_TEMPFAIL)


class ConfigError(ValueError):
    """A configuration, argument or file that cannot be used. The message names it and says how to mend it."""


class RunError(RuntimeError):
    """A run that cannot go on. The message says why, what was kept, and what to do."""


class StoppedError(Exception):
    """Somebody asked the run to stop (SIGINT or SIGTERM), and it has stopped where it can go on from."""
