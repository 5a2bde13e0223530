"""Metrics as JSON lines (for programs) and as TensorBoard event files (for people).

`metrics.jsonl` has one object a record: `step`, `time` (seconds since the epoch) and the metrics, nested names joined
by "/". TensorBoard's files lie beside it in `tensorboard/`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from rlef_jax.errors import ConfigError
from rlef_jax.files import named_in_errors, write_text

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Writes records of a run; use as a context manager, or `close()` it.

    A run that resumes at step S gives `start_step=S`: records of steps >= S are dropped first, since they will be
    written again. A fresh run (0) empties the file.
    """

    def __init__(self, workdir: Path, *, start_step: int = 0) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / FILE_NAME
        _keep_before(self._path, start_step)
        self._lines = open(self._path, "a", encoding="utf-8")
        # Not TensorBoard's own writer: its thread hears of a full disk, and the run much later or never.
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}.{os.getpid()}"
        self._events_path = workdir / "tensorboard" / name
        self._events_path.parent.mkdir(exist_ok=True)
        self._events = RecordWriter(open(self._events_path, "wb"))
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # TensorBoard hides what an earlier process wrote at or past this step.
        start = SessionLog(status=SessionLog.START)
        self._add(Event(step=start_step, wall_time=time.time(), session_log=start))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds one record. Values are numbers, 0-d arrays or nested mappings of them; non-finite ones become null."""
        now, flat = time.time(), dict(flatten(metrics))
        finite = {name: value if math.isfinite(value) else None for name, value in flat.items()}
        with named_in_errors(self._path):
            self._lines.write(json.dumps({"step": step, "time": now, **finite}, allow_nan=False) + "\n")
            self._lines.flush()
        summary = Summary(value=[Summary.Value(tag=n, simple_value=v) for n, v in flat.items()])
        self._add(Event(step=step, wall_time=now, summary=summary))

    def close(self) -> None:
        with named_in_errors(self._path), self._lines:
            with named_in_errors(self._events_path):
                self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What could not be written is tried again at the end: that error is not the one to tell.
        with contextlib.suppress(OSError) if kind is not None else contextlib.nullcontext():
            self.close()

    def _add(self, event: Event) -> None:
        with named_in_errors(self._events_path):
            self._events.write(event.SerializeToString())
            self._events.flush()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The records of a run, in order; a last line that was cut off by a kill is left out."""
    path = workdir / FILE_NAME
    if not path.exists():
        raise FileNotFoundError(f"no {FILE_NAME} in {workdir}: is it the --workdir of a run?")
    return list(_records(path))


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name, value) of all leaves, nested names joined by "/"."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield prefix + name, float(np.asarray(value))


def _records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    record = json.loads(line, parse_constant=_no_number)
                    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                        raise ValueError("a line without a step")
                    yield record
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are
        raise ConfigError(f"{path} is not what a run wrote: {error}") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _keep_before(path: Path, step: int) -> None:
    if not path.exists():
        return
    earlier = [record for record in _records(path) if record["step"] < step]
    write_text(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in earlier))
