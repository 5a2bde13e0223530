"""Runs hostile programs and looks at the host while and after: canary files, listeners, processes.

Also a script, for running the suite as another user: `python -m tests.helpers.hostile_run LEVEL` prints a JSON object
from each program's name to what was wrong ("" for nothing).
"""

import contextlib
import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
import tempfile

import rlef_jax.execution
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.types import Limits, Status, TestCase
from tests.helpers.host import call_itself, processes_called, tree, wait_until
from tests.helpers.hostile_programs import ATTEMPTS, BOMBS, LIARS

LIMITS = Limits(wall_s=1.0, memory_bytes=128 << 20, output_bytes=1 << 16, processes=16)
HONEST_LIMITS = Limits(wall_s=10.0, memory_bytes=256 << 20)
HONEST = (
    "import collections, heapq, math\nassert collections.deque([1]).pop() == 1 and math.pi > 3.1\n"
    "h = [3, 1, 2]; heapq.heapify(h); assert heapq.heappop(h) == 1\n"
    "print(sum(map(int, input().split())))"
)
NAME = f"rlef-h{os.getpid()}"  # of the programs' processes; others may be testing beside us
SLACK_S = 1.0  # for processes that are ending


class Range:
    """A pool of one worker, and what on the host must come to no harm."""

    def __init__(self, folder, level):
        self.folder = pathlib.Path(folder)
        self.canary = self.folder / "canary"
        self.content = secrets.token_hex()
        self.canary.write_text(self.content)
        self.canary.chmod(0o666)
        self.folder.chmod(0o777)
        self.listeners = [socket.create_server(("127.0.0.1", 0))]
        self.abstract = f"rlef-hostile-{os.getpid()}"
        for address in ("\0" + self.abstract, str(self.folder / "socket")):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(address)
            listener.listen()
            self.listeners.append(listener)
        for listener in self.listeners:
            listener.setblocking(False)
        self.names = sorted(p.name for p in self.folder.iterdir())
        self.outsider = subprocess.Popen(["sleep", "1000"])
        os.environ["RLEF_SECRET"] = "of the judge's process"
        self.pool = ExecutionPool(1, find_python("3.10"), level=level)
        self.honest()
        self.worker = self.pool.worker_pids()
        self.quiet = tree(self.worker)
        self.retries = 0

    def close(self):
        self.pool.close()
        self.outsider.kill()
        self.outsider.wait()
        for listener in self.listeners:
            listener.close()

    def honest(self):
        """An ordinary program's status on this worker."""
        return self.pool.run(HONEST, [TestCase("3 4", "7")], HONEST_LIMITS).result(60)[0].status

    def try_program(self, name):
        """Runs one of the programs, twice. Returns what was wrong, "" for nothing."""
        tests = [TestCase("unsafe", "safe")] * (2 if name in ATTEMPTS else 1)
        if name in ATTEMPTS:
            source, allowed = ATTEMPTS[name], {Status.PASSED}
        else:
            source, allowed = (BOMBS | LIARS)[name]
        source = self.fill_in(source)
        if Status.SYNTAX_ERROR not in allowed or len(allowed) > 1:
            source = call_itself(NAME) + source
        try:  # a verdict comes, whatever the program does; how soon depends on what else the machine does
            results = self.pool.run(source, tests, LIMITS).result(60)
        except Exception as exc:
            return f"no verdict: {exc!r}"
        wrong = [f"{r.status}: {r.stdout[:300]!r} {r.error[-300:]}" for r in results if r.status not in allowed]
        wrong += [f"a breach: {r.stdout[:200]}" for r in results if "BREACH" in r.stdout]
        return "; ".join([*wrong, *self.damage()])

    def fill_in(self, source):
        places = {
            "CANARY_FOLDER": self.folder,
            "CANARY": self.canary,
            "JUDGE": pathlib.Path(rlef_jax.execution.__file__).parent,
            "PORT": self.listeners[0].getsockname()[1],
            "ABSTRACT": self.abstract,
            "SERVER": self.worker[0],
            "OUTSIDER": self.outsider.pid,
        }
        for word, value in places.items():
            source = source.replace(word, str(value))
        return source

    def damage(self):
        """What the host has suffered, and whether the worker is what it was."""
        if (status := self.honest()) is not Status.PASSED:
            yield f"an honest program after it: {status}"
        if self.canary.read_text() != self.content or sorted(p.name for p in self.folder.iterdir()) != self.names:
            yield "the canary's folder was changed"
        for listener in self.listeners:
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                yield "a listener was reached"
        if self.outsider.poll() is not None:
            yield "a process outside was killed"
        if self.pool.worker_pids() != self.worker or self.pool.stats()["retries"] != self.retries:
            yield "the worker was broken"
            self.worker, self.retries = self.pool.worker_pids(), self.pool.stats()["retries"]
        if survivors := processes_called(NAME):
            yield f"still running: {survivors}"
            for pid in survivors:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        if not wait_until(lambda: len(tree(self.worker)) <= len(self.quiet), SLACK_S):  # the honest one's may be ending
            yield f"the worker has more processes than before: {tree(self.worker)}"
        for folder in ("/dev/shm", "/tmp", "/var/tmp", "/"):
            if left := [n for n in os.listdir(folder) if n in (NAME, "hostile0")]:
                yield f"{folder} holds {left}"
        if any(line.split()[:1] == ["7391"] for line in pathlib.Path("/proc/sysvipc/shm").read_text().splitlines()):
            yield "shared memory was left behind"


def main(level):
    with tempfile.TemporaryDirectory() as folder:
        place = Range(folder, level)
        try:
            print(json.dumps({name: place.try_program(name) for name in (*ATTEMPTS, *BOMBS, *LIARS)}))
        finally:
            place.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
