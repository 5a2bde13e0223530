# mypy: allow-untyped-defs
"""The judge's worker: a warm Python process that forks once per test. Runs alone, under the judge's Python (3.8+).

The pool starts it as `python -S -s -B worker.py SCRATCH` with a clean environment (PYTHONHASHSEED fixed, so that the
order of sets is the same in every worker) and a socket as standard input. It never imports the package and never
sees an expected output: it runs programs and reports what they did; the pool judges. Everything a program does
happens in a forked child that leads its own session, holds no descriptor of the worker's, and is killed with all
its descendants once its test is over.

Messages, big-endian (`REQUEST`, `REPLY` below): a request is its header, the program's text (empty: the one sent
before), then each test's length and input. Replies come one per test as each ends; a program that doesn't compile
has a single reply of kind C instead, and kind X says that the worker itself failed.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: programs must not import the judge's modules

import _sitebuiltins
import _thread
import builtins
import ctypes
import gc
import os
import resource
import select
import shutil
import signal
import struct
import time

REQUEST = struct.Struct("!IdQQII")  # program bytes, wall_s, memory_bytes, output_bytes, processes, tests
LENGTH = struct.Struct("!Q")
REPLY = struct.Struct("!cciddQII")  # kind, report, exit code (< 0: signal), cpu_s, wall_s, rss, stdout, error bytes
ENDED, TIMED_OUT, TOO_MANY_PROCESSES, NOT_COMPILED, FAILED = b"E", b"T", b"P", b"C", b"X"
NO_REPORT, EXCEPTION, OUT_OF_MEMORY = b"-", b"E", b"M"  # the last two as in child.py

CONTROL_FD = 10  # where the worker moves the pool's socket
STACK_BYTES = 256 << 20  # deep recursion is common in contest solutions
THREAD_STACK_BYTES = 8 << 20  # glibc's default would be the whole of the above per thread
REPORT_BYTES, CODE_BYTES = 1 << 16, 1 << 28  # at most so much is read of either
WATCH_S = 0.05  # how often a running program's processes are counted
STDERR_TAIL_BYTES = 2000
PRELOADED = (
    "array bisect collections copy decimal fractions functools heapq io itertools math operator queue random re "
    "string threading typing"
).split()
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, CLONE_NEWUSER, CLONE_NEWPID = 1, 36, 0x10000000, 0x20000000


class Limits:
    """What the child of one test may use."""

    def __init__(self, wall_s, memory_bytes, output_bytes, processes):
        self.wall_s = wall_s
        self.memory_bytes = memory_bytes
        self.output_bytes = output_bytes
        self.processes = processes


class Outcome:
    """What became of one child."""

    def __init__(self, kind, code, usage, wall_s, stdout, stderr, report, ready):
        self.kind = kind
        self.code = code
        self.usage = usage
        self.wall_s = wall_s
        self.stdout = stdout
        self.stderr = stderr
        self.report = report
        self.ready = ready


class PoolGoneError(Exception):
    """The other end of the control socket was closed."""


class Worker:
    """One worker's state: where programs run, the last compiled program, and the child's code."""

    def __init__(self, scratch, libc, namespaced):
        self.namespaced = namespaced
        self.scratch = scratch
        self.libc = libc
        self.child = load_sibling("child")
        self.format_exception = load_sibling("traceback_text").format_exception
        self.source = ""
        self.code = b""
        self.compile_error = b""
        self.wakeup = self._wake_on_child()

    @staticmethod
    def _wake_on_child():
        """A pipe that becomes readable when a child ends, so that one poll waits for that and for the pool."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        return reader

    def serve(self):
        """Answers requests until the pool closes the socket."""
        while True:
            size, wall_s, memory, output, processes, count = REQUEST.unpack(read_exactly(REQUEST.size))
            program = read_exactly(size)
            inputs = [read_exactly(LENGTH.unpack(read_exactly(LENGTH.size))[0]) for _ in range(count)]
            limits = Limits(wall_s, memory + virtual_memory(), output, processes)
            if program:
                self.source, self.code, self.compile_error = program.decode("utf-8", "surrogatepass"), b"", b""
            for data in inputs:
                if not self.compile_error:
                    self.test(data, limits)
                if self.compile_error:  # one reply for all of the request
                    reply(NOT_COMPILED, error=self.compile_error)
                    break

    def test(self, data, limits):
        """Runs the program on one input and replies, unless it doesn't compile: then only `compile_error` is set.

        The child of the first test compiles it, under that test's limits: hostile source can crash a compiler.
        """

        def body():
            return self.child.run_program(self.code, self.source, data, limits.output_bytes, self.format_exception)

        outcome = self.run_child(body, data, limits)
        if not outcome.ready:
            reply(FAILED, error=b"the child could not be set up: " + outcome.stderr)
            return
        compiled = bool(self.code) or (outcome.ready[1:2], outcome.ready[-1:]) == (self.child.COMPILED, self.child.END)
        if not compiled and outcome.kind == ENDED:  # refused, or the compiler itself crashed
            self.compile_error = outcome.ready[2:] or b"SyntaxError: the program could not be compiled"
            return
        if compiled and not self.code:
            self.code = outcome.ready[2:]
        report, error = outcome.report[:1] or NO_REPORT, outcome.report[1:]
        if report not in (EXCEPTION, OUT_OF_MEMORY) or outcome.code == 0:
            report, error = NO_REPORT, outcome.stderr[-STDERR_TAIL_BYTES:]
        reply(outcome.kind, report, outcome.code, outcome.usage, outcome.wall_s, outcome.stdout, error)

    def run_child(self, body, data, limits):
        """Forks, runs `body` in the child under the limits, kills whatever is left of it. Returns an Outcome."""
        files = [scratch_file(name) for name in ("stdin", "stdout", "stderr", "report", "ready")]
        stdin, stdout, stderr, report, ready = files
        try:
            write_all(stdin, data)
            os.lseek(stdin, 0, os.SEEK_SET)
            self.empty_scratch()
            start = time.monotonic()
            pid = os.fork()
            if pid == 0:
                self.child.be_child(body, files, limits, self.scratch, self.libc)
            kind = self.wait(pid, start + limits.wall_s, limits.processes)
            wall_s = time.monotonic() - start
            kill_group(pid)  # before it is reaped: its id is still its own
            _, status, usage = os.wait4(pid, 0)
            self.kill_orphans()
            out, err = (read_file(fd, limits.output_bytes + 1) for fd in (stdout, stderr))
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            told, came = read_file(report, REPORT_BYTES), read_file(ready, CODE_BYTES)
            return Outcome(kind, code, usage, wall_s, out, err, told, came)
        finally:
            for fd in files:
                os.close(fd)

    def wait(self, pid, deadline, processes):
        """Until the child ends by itself (not reaped), or has to be killed: says which."""
        while True:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return ENDED
            left = deadline - time.monotonic()
            if left <= 0:
                return TIMED_OUT
            self.doze(min(left, WATCH_S))
            if count_descendants(processes) > processes:
                return TOO_MANY_PROCESSES

    def doze(self, seconds):
        """Sleeps until a child ends, the pool goes away (PoolGoneError) or the time is over."""
        poll = select.poll()
        poll.register(self.wakeup, select.POLLIN)
        poll.register(CONTROL_FD, select.POLLIN)
        for fd, _ in poll.poll(max(1, int(seconds * 1000 + 1))):
            if fd == CONTROL_FD:  # between a request and its last reply the pool has nothing to say
                raise PoolGoneError
            os.read(self.wakeup, 4096)

    def kill_orphans(self):
        """Kills and reaps every process that a program left behind; they become this process's children."""
        give_up = time.monotonic() + 2.0
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] != 0:
                    continue
            except ChildProcessError:
                return
            if time.monotonic() > give_up:
                raise RuntimeError("a program's processes could not be killed")
            self.kill_all()
            time.sleep(0.001)

    def kill_all(self):
        """SIGKILL to all descendants."""
        # In a namespace of its own, everything but itself; outside of one, -1 would be the whole machine.
        for pid in [-1] if self.namespaced else children("/proc/thread-self"):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def empty_scratch(self):
        """The working directory of the next test: there, ours, and empty."""
        if os.path.islink(self.scratch):
            os.unlink(self.scratch)
        try:
            if not os.listdir(self.scratch):
                return
            os.chmod(self.scratch, 0o700)
            shutil.rmtree(self.scratch)
        except FileNotFoundError:
            pass
        os.mkdir(self.scratch, 0o700)


def count_descendants(enough):
    """How many processes descend from this one (stops counting beyond `enough`)."""
    todo, seen = list(children("/proc/thread-self")), 0
    while todo and seen <= enough:
        seen += 1
        task = f"/proc/{todo.pop()}/task"
        try:
            for thread in os.listdir(task):
                todo.extend(children(f"{task}/{thread}"))
        except OSError:  # it has ended meanwhile
            continue
    return seen


def children(task):
    """Process ids of the children of a /proc task folder; none where the kernel doesn't tell."""
    try:
        with open(task + "/children") as f:
            return [int(pid) for pid in f.read().split()]
    except OSError:
        return []


def kill_group(pid):
    """SIGKILL to the child and its process group."""
    for kill in (os.kill, os.killpg):
        try:
            kill(pid, signal.SIGKILL)
        except OSError:  # no group yet (killed before its setsid)
            pass


def virtual_memory():
    """Bytes of address space this process has: the interpreter's share of RLIMIT_AS, on top of the program's."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[0]) * resource.getpagesize()


def scratch_file(name):
    """A file without a name in any folder. Programs may fstat their standard input: a pipe would not do."""
    return os.memfd_create(name)


def read_file(fd, limit):
    """The first `limit` bytes of a file, whatever its offset."""
    size = min(os.fstat(fd).st_size, limit)
    return os.pread(fd, size, 0) if size else b""


def write_all(fd, data):
    """Writes every byte of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_exactly(count):
    """`count` bytes from the pool. PoolGoneError at the end of the stream."""
    parts = []
    while count:
        part = os.read(CONTROL_FD, min(count, 1 << 20))
        if not part:
            raise PoolGoneError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def reply(kind, report=NO_REPORT, code=0, usage=None, wall_s=0.0, stdout=b"", error=b""):
    """Sends one reply to the pool."""
    cpu_s = usage.ru_utime + usage.ru_stime if usage else 0.0
    rss = usage.ru_maxrss * 1024 if usage else 0
    header = REPLY.pack(kind, report, code, cpu_s, wall_s, rss, len(stdout), len(error))
    write_all(CONTROL_FD, header + stdout + error)


def raise_stack_limit():
    """Starts this process anew under a larger stack limit: the kernel lays memory out by it at exec."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))
        if resource.getrlimit(resource.RLIMIT_STACK)[0] == wanted:
            os.execv(sys.executable, [sys.executable, "-S", "-s", "-B", *sys.argv])


def enter_namespace(libc):
    """Where the system allows it, goes on as process 1 of a process namespace; else stays as it is.

    Inside, a program can signal neither the worker nor anything outside, and nothing of it outlives the worker.
    The outer process only waits: killing it kills the inner one, and with it the namespace. Returns whether it is so.
    """
    if libc.unshare(CLONE_NEWPID) != 0 and not enter_user_namespace(libc):
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        return False
    inner = os.fork()
    if inner:
        os.close(CONTROL_FD)
        _, status = os.waitpid(inner, 0)
        os._exit(1 if status else 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    return os.getpid() == 1


def enter_user_namespace(libc):
    """An ordinary user's way to a process namespace: inside a user namespace, under the same ids. Whether it worked."""
    ids = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0:
        return False
    for name, text in zip(("setgroups", "uid_map", "gid_map"), ("deny", "{0} {0} 1", "{1} {1} 1")):
        with open("/proc/self/" + name, "w") as f:
            f.write(text.format(*ids))
    return True


def load_sibling(name):
    """A module from the file of that name beside this one, out of reach of a program's `import`."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py")
    module = type(sys)(name)
    with open(path) as f:
        exec(compile(f.read(), path, "exec"), module.__dict__)
    return module


def main():
    raise_stack_limit()
    scratch = sys.argv[1]
    libc = ctypes.CDLL(None, use_errno=True)
    os.dup2(0, CONTROL_FD, inheritable=False)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    namespaced = enter_namespace(libc)
    for name in PRELOADED:
        __import__(name)
    _thread.stack_size(THREAD_STACK_BYTES)
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")  # site is not loaded
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    worker = Worker(scratch, libc, namespaced)
    gc.collect()
    gc.freeze()  # what is here now is no garbage of any program's
    try:
        worker.serve()
    except PoolGoneError:
        pass
    except Exception as exc:
        reply(FAILED, error=repr(exc).encode("utf-8", "backslashreplace"))
    finally:
        worker.kill_all()
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
