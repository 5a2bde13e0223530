"""One worker process as the pool sees it: started, asked, killed. No judging here."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

from rlef_jax.execution import worker as protocol
from rlef_jax.execution.interpreter import Interpreter
from rlef_jax.types import Limits

_SCRIPT = pathlib.Path(protocol.__file__).resolve()
_START_S = 60.0  # a worker's start, on a machine that is busy with other things
_GRACE_S = 30.0  # beyond the wall limit of a test, before a worker that says nothing counts as broken
_EXIT_S = 5.0
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}


class BrokenWorkerError(RuntimeError):
    """The worker died, hung or failed: nothing is known about the program it was running."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a program did on one input, unjudged. Kinds and reports are the worker's one-byte codes."""

    kind: bytes
    report: bytes
    exit_code: int
    cpu_s: float
    wall_s: float
    memory_bytes: int
    stdout: bytes
    error: bytes


class WorkerProcess:
    """A worker and its scratch folder. Used by one thread; only `kill` may be called from another."""

    def __init__(self, interpreter: Interpreter, scratch: str | None):
        """Starts the process; it warms up while the caller goes on. BrokenWorkerError if it can't be started."""
        self._scratch = tempfile.mkdtemp(prefix="rlef-execution-", dir=scratch)
        self._socket, theirs = socket.socketpair()
        self._loaded: str | None = None
        command = [interpreter.path, "-S", "-s", "-B", str(_SCRIPT), os.path.join(self._scratch, "cwd")]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                cwd=self._scratch,
                start_new_session=True,  # the terminal's Ctrl-C is for us: we close the workers
            )
        except OSError as exc:
            self._socket.close()
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise BrokenWorkerError(f"the worker could not be started: {exc}") from exc
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """The process that the pool started (the worker proper may be its child, in a process namespace)."""
        return self._process.pid

    def run(self, program: str, inputs: Sequence[str], limits: Limits) -> Iterator[Outcome]:
        """One Outcome per input, each as its test ends; a single one of kind NOT_COMPILED for all of them.

        The iterator must be used up before the next call. BrokenWorkerError if the worker doesn't answer rightly.
        """
        try:
            self._socket.settimeout(_START_S + limits.wall_s)
            self._socket.sendall(self._request(program, inputs, limits))
            for _ in inputs:
                outcome = self._reply()
                if outcome.kind == protocol.FAILED:
                    raise BrokenWorkerError(outcome.error.decode("utf-8", "replace"))
                self._loaded = program
                yield outcome
                if outcome.kind == protocol.NOT_COMPILED:
                    return
                self._socket.settimeout(limits.wall_s + _GRACE_S)
        except OSError as exc:
            raise BrokenWorkerError(f"the worker broke off: {exc!r}") from exc

    def _request(self, program: str, inputs: Sequence[str], limits: Limits) -> bytes:
        # An empty text means the program before, so an empty program goes as an empty line.
        text = b"" if program == self._loaded else (program or "\n").encode("utf-8", "surrogatepass")
        header = protocol.REQUEST.pack(
            len(text), limits.wall_s, limits.memory_bytes, limits.output_bytes, limits.processes, len(inputs)
        )
        parts = [header, text]
        for data in inputs:
            encoded = data.encode("utf-8", "surrogateescape")
            parts += [protocol.LENGTH.pack(len(encoded)), encoded]
        return b"".join(parts)

    def _reply(self) -> Outcome:
        header = protocol.REPLY.unpack(self._read(protocol.REPLY.size))
        kind, report, code, cpu_s, wall_s, memory, stdout_size, error_size = header
        stdout, error = self._read(stdout_size), self._read(error_size)
        return Outcome(kind, report, code, cpu_s, wall_s, memory, stdout, error)

    def _read(self, count: int) -> bytes:
        data = bytearray(count)
        view, at = memoryview(data), 0
        while at < count:
            received = self._socket.recv_into(view[at:])
            if not received:
                raise BrokenWorkerError("the worker died")
            at += received
        return bytes(data)

    def kill(self) -> None:
        """Ends the worker and every program of its, at once."""
        self._process.kill()

    def close(self) -> None:
        """Ends the worker, gently if it still listens, and removes its scratch folder. May be called twice."""
        self._socket.close()  # its sign to kill what runs and to exit
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)
