"""Controls one worker process for the pool: starts it at a level of isolation, sends requests, stops and kills it."""

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
# Imports on one line, which `source` replaces by the module's text: workers don't have the package.
_PACKAGE_IMPORT = re.compile(r"^from rlef_jax\.execution\.(\w+) import .*$", re.MULTILINE)
_START_S = 60.0  # time limit for a worker's start, even on a busy machine
_GRACE_S = 30.0  # time beyond a test's wall limit after which a silent worker counts as broken
_EXIT_S = 5.0
_KERNEL_BYTES = 4 << 20  # added to a cgroup's limit for the kernel's own memory per program


class BrokenWorkerError(RuntimeError):
    """Raised if the worker died, hung or failed; nothing is known about the program it was running."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A program's run on one input, not judged yet. `kind` and `report` are one-byte codes of `worker` and `child`."""

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
    """A worker process. Only for one thread, except that others may call `stop`, `pause` and `kill`."""

    def __init__(self, plan: Plan, index: int):
        """Starts the process and waits until it is ready. Raises BrokenWorkerError, with the reason, if it fails.

        `index` is the worker's number, unique among this process's running workers.
        """
        self._plan = plan
        self.index = index
        self._number = 0
        self._sending = threading.Lock()
        self._cgroup: Cgroup | None = None
        self._idle_bytes = 0
        self._payload = os.memfd_create("rlef-payload", os.MFD_CLOEXEC)
        self._socket, worker_end = socket.socketpair()
        try:
            self._process = self._launch(worker_end)
        except BaseException:
            self._release()
            raise
        finally:
            worker_end.close()
        try:
            self._shake_hands()
        except (OSError, NoCgroupError, BrokenWorkerError) as exc:
            self.kill()
            self.close()
            raise BrokenWorkerError(f"the worker could not be started: {exc}") from exc

    @property
    def pid(self) -> int:
        """The id of the process that the pool started; with namespaces the worker itself is its child."""
        return self._process.pid

    def _launch(self, worker_end: socket.socket) -> subprocess.Popen[bytes]:
        bundle = os.memfd_create("rlef-bundle", os.MFD_CLOEXEC)
        events = -1
        try:
            if self._plan.cgroup:
                self._cgroup = Cgroup(self.index)
                events = self._cgroup.events()
            os.write(bundle, _bundle(self._plan))
            fds = [worker_end.fileno(), self._payload, bundle, events]
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", launch.__file__, *map(str, fds)],
                pass_fds=[fd for fd in fds if fd >= 0],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,  # Ctrl-C goes to this process only, which then closes the workers
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
        if self._plan.sandbox["mapped_by_pool"]:
            self._expect(launch.WAITS_FOR_MAPPING)
            server, program = user_ids(os.getpid() * 64 + self.index)
            for name in ("uid_map", "gid_map"):
                pathlib.Path(f"/proc/{self.pid}/{name}").write_text(f"0 {server} 1\n1 {program} 1\n")
            self._socket.sendall(launch.GO)
        self._expect(worker.READY)
        if self._cgroup is not None:
            self._idle_bytes = self._cgroup.used() + _KERNEL_BYTES

    def _expect(self, expected: bytes) -> None:
        received = bytes(self._read(1))
        if received != expected:
            with self._socket.makefile("rb") as rest:
                raise BrokenWorkerError((received[1:] + rest.read()).decode("utf-8", "replace") or "it said nothing")

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
        """Yields one Outcome per input, each soon after its test ends.

        An outcome NOT_COMPILED or DIED stands for all remaining inputs. After `stop`, STOPPED is the last one. The
        iterator must be exhausted before the next call.

        Args:
          program: the program's text.
          inputs: standard inputs, or encoded calls (`calls.py`) with `functions`.
          limits: for each test.
          frame: two texts to run before and after the program, in its namespace.
          eager: send each outcome at once rather than in batches.
          functions: whether the inputs are calls.

        Raises BrokenWorkerError if the worker dies, hangs or sends something else.
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
        """Writes texts, table of tests and inputs to the shared memory file. Returns the texts' sizes in bytes."""
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
        """The number of the last request, for `stop` and `pause`."""
        return self._number

    def stop(self, number: int) -> None:
        """Ends request `number` at once, if it still runs; its last outcome will be STOPPED."""
        self._send_control(worker.STOP, number)

    def pause(self, number: int) -> None:
        """Ends request `number` after its current test, like `stop`."""
        self._send_control(worker.PAUSE, number)

    def _send_control(self, kind: bytes, number: int) -> None:
        try:
            self._send(kind, number, Limits())
        except OSError:  # it has just died, which its own thread will notice
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
        """Kills the worker and its programs at once."""
        self._process.kill()

    def close(self) -> None:
        """Ends the worker, or kills it if it doesn't respond. May be called twice."""
        self._socket.close()  # tells the worker to kill its program and exit
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
    """Settings and sources for launcher and worker, marshalled in a format that any Python version reads."""
    texts = {name: source(name) for name in _SOURCES}
    content = {
        "worker": source("worker"),
        "sources": texts,
        "settings": dict(plan.settings),
        "sandbox": dict(plan.sandbox),
    }
    return marshal.dumps(content, 2)


def source(name: str) -> str:
    """The text of a module of this folder, with its imports from this folder replaced by the modules' texts.

    Only imports that fit on one line are replaced.
    """
    text = (_HERE / f"{name}.py").read_text(encoding="utf-8")
    return _PACKAGE_IMPORT.sub(lambda match: source(match[1]), text)
