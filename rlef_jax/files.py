"""Files that are written whole or not at all, and whose errors name them: a full disk's own error names nothing."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast


@contextlib.contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Puts the file's name into an OSError that has none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` at the end of the block; after an error nothing is left of it.

    Args:
      shared: other processes may write `path` too, on other machines: each one's part has a name of its own, since the
        number of a process isn't unique there. The last to end is the one that stays.

    Raises OSError, naming the file, where it can't be written.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part" if shared else f"{path.name}.part")
    try:
        with named_in_errors(path):
            with open(part, "wb") as file:
                yield file
            os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


@contextlib.contextmanager
def replacing_packed(path: Path) -> Iterator[BinaryIO]:
    """As `replacing`; gzipped where the name ends in .gz, with equal bytes for equal content."""
    with replacing(path) as raw:
        if not path.name.endswith(".gz"):
            yield raw
            return
        with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as file:
            yield cast(BinaryIO, file)


def write_text(path: Path, text: str) -> None:
    """Writes a text as UTF-8, whole or not at all. Raises OSError, naming the file, where it can't be written."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, whole or not at all. Raises ValueError for NaN and infinity, OSError as `write_text`."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
