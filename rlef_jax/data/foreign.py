"""Reads files from outside (gzip, JSON, JSON lines, parquet) and reports each fault as a one-line ConfigError.

A download may be truncated, damaged, or something else: a Git LFS pointer, a web page. All readers of published data
and of samples use this module. Its errors name the file, the record if there is one, and the fix.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rlef_jax.errors import ConfigError

AGAIN = "download it again"
_GZIP, _BOM = b"\x1f\x8b", b"\xef\xbb\xbf"
_LFS = b"version https://git-lfs"
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def json_file(path: Path) -> Any:
    """The value of a JSON file, gzipped or not. Raises ConfigError."""
    with opened(path) as file, naming(path):
        data = file.read()
    return parsed(data, str(path))


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each line of a JSON lines file, gzipped or not; blank lines are skipped.

    Only a newline ends a line. Holds one line in memory at a time. Raises ConfigError.
    """
    for place, line in lines(path):
        row = parsed(line, place)
        if not isinstance(row, dict):
            raise ConfigError(f"{place}: not a JSON object: {AGAIN}, or give another file")
        yield place, row


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each object in a JSON lines file, or in the list of a `.json` file. Raises ConfigError."""
    if not path.name.removesuffix(".gz").endswith(".json"):
        yield from json_lines(path)
        return
    rows = json_file(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: not a list of JSON objects: {AGAIN}, or give another file")
    yield from ((f"{path}, item {number}", row) for number, row in enumerate(rows, start=1))


def lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(place, bytes) of each line that isn't blank. Raises ConfigError if the file can't be read to its end."""
    with opened(path) as file:
        number = 0
        while line := _line(file, path):
            number += 1
            if line.strip():
                yield f"{path}, line {number}", line


def _line(file: BinaryIO, path: Path) -> bytes:
    with naming(path):
        return file.readline()


def parsed(data: bytes, place: str) -> Any:
    """The value of JSON text. Raises ConfigError, whose message begins with `place`."""
    try:
        return json.loads(data.removeprefix(_BOM).decode("utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        expected = "UTF-8 text" if isinstance(error, UnicodeDecodeError) else "JSON"
        raise ConfigError(f"{place}: not {expected} ({cause(error)}): {AGAIN}, or mend it") from error


def parquet_file(path: Path) -> Any:
    """An open `pyarrow.parquet.ParquetFile`. Raises ConfigError if it isn't one, or pyarrow isn't installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(f"{path}: parquet files take pyarrow: pip install 'rlef-jax[data]' ({error})") from error
    check(path)
    try:
        # With a buffer, pages are read when needed; without, a column's whole chunk (all solutions) is held in memory.
        return pq.ParquetFile(path, buffer_size=1 << 20)
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: not a parquet file ({cause(error)}): {AGAIN}") from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file opened for reading, decompressed if it is gzipped (whatever its name). Raises ConfigError.

    Later reads may raise errors that `naming` converts.
    """
    gzipped = is_gzipped(path)
    with naming(path):
        raw = path.open("rb")
    with raw:
        if not gzipped:
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as file:
            with naming(path):
                first = file.peek(64)[:64]
            _check_start(first, path)
            yield io.BufferedReader(file)  # type: ignore[arg-type]


def is_gzipped(path: Path) -> bool:
    """Whether the first bytes are gzip's. The name doesn't tell: browsers may decompress a download and keep its name.

    Raises ConfigError as `check` does.
    """
    return check(path).startswith(_GZIP)


def check(path: Path) -> bytes:
    """A file's first bytes. Raises ConfigError if it can't be read or isn't data (see `_check_start`)."""
    with naming(path), path.open("rb") as file:
        start = file.read(64)
    _check_start(start, path)
    return start


def _check_start(start: bytes, path: Path) -> None:
    """Raises ConfigError for an empty file, a Git LFS pointer, a web page or UTF-16 text."""
    text = start.removeprefix(_BOM).lstrip().lower()
    if not start:
        raise ConfigError(f"{path} is empty: {AGAIN}")
    if text.startswith(_LFS):
        raise ConfigError(f"{path} is a Git LFS pointer, not the file it stands for: git lfs pull, or {AGAIN}")
    if text.startswith(_PAGES):
        raise ConfigError(f"{path} is a web page, not data: {AGAIN}, from the address of the file itself")
    if start.startswith(_UTF16):
        raise ConfigError(f"{path} is UTF-16 text: write it as UTF-8")


@contextlib.contextmanager
def naming(path: Path, record: str = "") -> Iterator[None]:
    """Converts errors of any file reader inside the block into a ConfigError that names the file and the record."""
    try:
        yield
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(f"no file {path}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a folder, not a file") from error
    except PermissionError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as error:
        where = f"{path}, {record}" if record else str(path)
        raise ConfigError(f"{where}: damaged ({cause(error)}): {AGAIN}") from error


def cause(error: BaseException) -> str:
    """An error's message as one line of at most 200 characters."""
    text = " ".join(str(error).split())[:200]
    return text or type(error).__name__
