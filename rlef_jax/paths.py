"""The one rule for paths that people give, on a command line or in a configuration: they are folders of this machine.

`~` and `~user` are home folders, wherever a shell left them as they are. An address (gs://, s3://, file://, ...) is
refused: taken for a path it would lose a slash and become a local folder.
"""

from __future__ import annotations

import os
import re

from rlef_jax.errors import ConfigError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: pathlib turns gs://bucket into gs:/bucket


def local_text(text: str, option: str) -> str:
    """The text with its home folder written out; else as it is.

    Raises ConfigError, naming `option`, for what is no path of this machine.
    """
    if not text:
        raise ConfigError(f"{option}: an empty text is no path")
    if "\0" in text:
        raise ConfigError(f"{option}: {text!r} has a NUL character, which no path can hold")
    if _ADDRESS.match(text):
        raise ConfigError(f"{option}: {text!r} is an address; remote folders are not supported: give a local path")
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        name = text.partition("/")[0]
        raise ConfigError(f"{option}: no home folder is known for {name!r}: write the path out, or ./{name} for a file")
    return expanded
