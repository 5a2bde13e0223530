"""What every command's arguments are read with: errors of one line, paths of this machine, and output of any text."""

from __future__ import annotations

import argparse
import difflib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rlef_jax.errors import EXIT_BAD_INPUT, ConfigError
from rlef_jax.paths import local_text


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that says in one line what is wrong with a command line, and then exits with 2."""

    def __init__(self, **settings: Any) -> None:
        tolerate_any_text()  # or --help, too, would end in an error on a terminal that can't show a character
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The arguments; an option that isn't known is an error that names the nearest one."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            options = [option for action in self._actions for option in action.option_strings]
            near = "".join(f" (did you mean {option}?)" for option in difflib.get_close_matches(name, options, 1))
            self.error(f"unrecognized argument {unknown[0]}{near}")
        return parsed

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split("\n"))
        self.exit(EXIT_BAD_INPUT, f"error: {line}; --help names every option\n")


def path(text: str) -> Path:
    """The type of an argument that is a path of this machine: see `rlef_jax.paths`."""
    return Path(path_or_name(text))


def path_or_name(text: str) -> str:
    """The type of an argument that is a path or some other name, such as mini_contests:SPLIT or 3.10."""
    try:
        return local_text(text, "")
    except ConfigError as error:  # argparse puts the option's name in front
        raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from error


def tolerate_any_text() -> None:
    """Writes what a terminal's encoding lacks, and halves of surrogate pairs, as escapes instead of ending in an error.

    Names of files, problems' texts and programs' output hold what no encoding has.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
