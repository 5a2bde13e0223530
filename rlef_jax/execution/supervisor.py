"""One worker process as the pool sees it: started at a level of isolation, asked, stopped, killed. No judging here."""

from __future__ import annotations

import dataclasses
import marshal
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence

from rlef_jax.execution import launch, worker
from rlef_jax.execution.cgroups import Cgroup, NoCgroupError
from rlef_jax.execution.isolation import Plan, user_ids
from rlef_jax.types import Limits

_HERE = pathlib.Path(worker.__file__).resolve().parent
_SOURCES = ("kernel", "confine", "program", "child", "traceback_text", "calls")
_OWN_IMPORT = re.compile(r"^from rlef_jax\.execution\.(\w+) import .*$", re.MULTILINE)  # workers don't have the package
_START_S = 60.0  # a worker's start, on a machine that is busy with other things
_GRACE_S = 30.0  # beyond the wall limit of a test, before a worker that says nothing counts as broken
_EXIT_S = 5.0
_SPACE_BYTES = 4 << 20  # of a cgroup's limit, for the kernel's own bookkeeping of a program


class BrokenWorkerError(RuntimeError):
    """The worker died, hung or failed: nothing is known about the program it was running."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a program did on one input, unjudged. Kinds and reports are the worker's one-byte codes."""

    kind: bytes
    report: bytes
    out_of_memory: bool
    exit_code: int
    cpu_s: float
    wall_s: float
    memory_bytes: int
    stdout: bytes
    stderr: bytes
    error: bytes


class WorkerProcess:
    """A worker. Used by one thread; only `stop` and `kill` may be called from others."""

    def __init__(self, plan: Plan, index: int):
        """Starts the process and waits until it is warm. BrokenWorkerError, with the reason, if it doesn't start.

        `index` is the worker's number, which no other one of this process has at the same time.
        """
        self._plan = plan
        self.index = index
        self._number = 0
        self._sending = threading.Lock()
        self._cgroup: Cgroup | None = None
        self._idle_bytes = 0
        self._payload = os.memfd_create("rlef-payload", os.MFD_CLOEXEC)
        self._socket, theirs = socket.socketpair()
        try:
            self._process = self._launch(theirs)
        except BaseException:
            self._release()
            raise
        finally:
            theirs.close()
        try:
            self._shake_hands()
        except (OSError, NoCgroupError, BrokenWorkerError) as exc:
            self.kill()
            self.close()
            raise BrokenWorkerError(f"the worker could not be started: {exc}") from exc

    @property
    def pid(self) -> int:
        """The process that the pool started (the worker proper may be its child, in a process namespace)."""
        return self._process.pid

    def _launch(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        bundle = os.memfd_create("rlef-bundle", os.MFD_CLOEXEC)
        events = -1
        try:
            if self._plan.cgroup:
                self._cgroup = Cgroup(self.index)
                events = self._cgroup.events()
            os.write(bundle, _bundle(self._plan))
            fds = [theirs.fileno(), self._payload, bundle, events]
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", launch.__file__, *map(str, fds)],
                pass_fds=[fd for fd in fds if fd >= 0],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,  # the terminal's Ctrl-C is for us: we close the workers
            )
        except (OSError, NoCgroupError) as exc:
            raise BrokenWorkerError(f"the worker could not be started: {exc}") from exc
        finally:
            os.close(bundle)
            if events >= 0:
                os.close(events)

    def _shake_hands(self) -> None:
        self._socket.settimeout(_START_S)
        if self._cgroup is not None:
            self._cgroup.add(self._process.pid)
        self._socket.sendall(launch.GO)
        if self._plan.room["mapped_by_pool"]:
            self._expect(launch.MAPPED)
            server, program = user_ids(os.getpid() * 64 + self.index)
            for name in ("uid_map", "gid_map"):
                pathlib.Path(f"/proc/{self.pid}/{name}").write_text(f"0 {server} 1\n1 {program} 1\n")
            self._socket.sendall(launch.GO)
        self._expect(worker.READY)
        if self._cgroup is not None:
            self._idle_bytes = self._cgroup.used() + _SPACE_BYTES

    def _expect(self, wanted: bytes) -> None:
        got = bytes(self._read(1))
        if got != wanted:
            with self._socket.makefile("rb") as rest:
                raise BrokenWorkerError((got[1:] + rest.read()).decode("utf-8", "replace") or "it said nothing")

    def run(
        self,
        program: str,
        inputs: Sequence[bytes],
        limits: Limits,
        *,
        frame: tuple[str, ...] = (),
        eager: bool = False,
        functions: bool = False,
    ) -> Iterator[Outcome]:
        """One Outcome per input, each soon after its test ends; a NOT_COMPILED or DIED one stands for all the rest.

        A `frame` is two texts to run before and behind the program, in its names. `eager` has each outcome come at
        once; a STOPPED one is the last after `stop`. With `functions`, inputs are calls
        (`calls.py`). The iterator must be used up before the next call. BrokenWorkerError if the worker doesn't answer
        rightly.
        """
        try:
            if self._cgroup is not None:
                self._cgroup.limit_memory(self._idle_bytes + limits.memory_bytes)
            sizes = self._write_payload((*(frame or ("", "")), program), inputs)
            with self._sending:
                self._number += 1
            flags = worker.EAGER * eager | worker.FUNCTIONS * functions
            self._send(worker.REQUEST, self._number, limits, flags, sizes, len(inputs))
            self._socket.settimeout(limits.longest_s + _GRACE_S)
            for _ in range(len(inputs)):
                outcome = self._reply()
                if outcome.kind == worker.FAILED:
                    raise BrokenWorkerError(outcome.error.decode("utf-8", "replace"))
                yield outcome
                if outcome.kind in (worker.NOT_COMPILED, worker.DIED, worker.STOPPED):
                    return
        except OSError as exc:
            raise BrokenWorkerError(f"the worker broke off: {exc!r}") from exc

    def _write_payload(self, texts: Sequence[str], inputs: Sequence[bytes]) -> tuple[int, ...]:
        """Texts, table of tests and inputs, into the file shared with the worker. Returns the texts' sizes in bytes."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        sizes = tuple(map(len, encoded))
        at = sum(sizes) + worker.TEST.size * len(inputs)
        table = bytearray()
        for data in inputs:
            table += worker.TEST.pack(at, len(data), zlib.crc32(data))
            at += len(data)
        os.ftruncate(self._payload, 0)
        view = memoryview(b"".join((*encoded, table, *inputs)))
        written = 0
        while written < len(view):
            written += os.pwrite(self._payload, view[written:], written)
        return sizes

    def _send(
        self,
        kind: bytes,
        number: int,
        limits: Limits,
        flags: int = 0,
        sizes: tuple[int, ...] = (0, 0, 0),
        tests: int = 0,
    ) -> None:
        message = worker.MESSAGE.pack(
            kind, number, limits.wall_s, limits.wall_patience, limits.memory_bytes, limits.output_bytes,
            limits.processes, flags, *sizes, tests,
        )  # fmt: skip
        with self._sending:
            self._socket.sendall(message)

    @property
    def number(self) -> int:
        """Of the request last sent: what `stop` takes."""
        return self._number

    def stop(self, number: int) -> None:
        """Has the worker end request `number` now, if it still runs: a STOPPED outcome will be its last."""
        self._tell(worker.STOP, number)

    def pause(self, number: int) -> None:
        """The same after the test that runs."""
        self._tell(worker.PAUSE, number)

    def _tell(self, kind: bytes, number: int) -> None:
        try:
            self._send(kind, number, Limits())
        except OSError:  # it has just died; its own thread will see
            pass

    def _reply(self) -> Outcome:
        header = worker.REPLY.unpack(self._read(worker.REPLY.size))
        kind, report, out_of_memory, code, cpu_s, wall_s, memory, *sizes = header
        stdout, stderr, error = (self._read(size) for size in sizes)
        return Outcome(kind, report, out_of_memory, code, cpu_s, wall_s, memory, stdout, stderr, error)

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
        """Ends the worker, gently if it still listens. May be called twice."""
        self._socket.close()  # its sign to kill what runs and to exit
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._release()

    def _release(self) -> None:
        self._socket.close()
        if self._payload >= 0:
            os.close(self._payload)
            self._payload = -1
        if self._cgroup is not None:
            self._cgroup.remove()


def _bundle(plan: Plan) -> bytes:
    """All that launcher and worker need to know, in a form that any Python reads."""
    texts = {name: source(name) for name in _SOURCES}
    content = {
        "worker": source("worker"),
        "sources": texts,
        "settings": dict(plan.settings),
        "room": dict(plan.room),
    }
    return marshal.dumps(content, 2)


def source(name: str) -> str:
    """The text of a file of this folder, with those that it imports from here in the place of the imports."""
    text = (_HERE / f"{name}.py").read_text(encoding="utf-8")
    return _OWN_IMPORT.sub(lambda found: source(found[1]), text)
