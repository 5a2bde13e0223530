"""Stopping on request: the first SIGINT or SIGTERM asks, the second one ends at once; helper processes end too."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.machinery import ModuleSpec
from multiprocessing import get_context, parent_process
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a question that the run answers when it can: use as a context manager.

    A second signal exits with 128 + its number, saving nothing. Outside the main thread, where Python allows no
    handlers, signals keep their meaning.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether somebody has asked."""
        return self.signal is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = signal.Signals(number)
        text = f"\n{self.signal.name}: saving, then stopping; once more to stop at once\n"
        os.write(2, text.encode())  # print may be in the middle of a line


def helper_process() -> ProcessPoolExecutor:
    """A process for work beside this one's, which ends with it. Called by its main thread or before it has others.

    Unlike other processes of multiprocessing it doesn't import this one's main module: after `python -m rlef_jax.train`
    that would be all of JAX's and Orbax's parts, which take seconds of a core. So it runs no function of that module.
    """
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=serve_parent)
    main = sys.modules["__main__"]
    spec = main.__spec__
    main.__spec__ = ModuleSpec("__main__", None)  # of this name it is taken to be imported
    try:
        pool.submit(int)  # which starts it
    finally:
        main.__spec__ = spec
    return pool


def serve_parent() -> None:
    """For helper processes: leaves signals to the run that they serve, and ends with it however it ends.

    Ctrl-C and schedulers signal the whole process group, but only the run can answer; and a run that is killed cannot
    tell anybody.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    run = parent_process()
    # Not whoever is the parent by now: the run may have been killed while this helper imported what it needs.
    parent = os.getppid() if run is None or run.pid is None else run.pid
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)
