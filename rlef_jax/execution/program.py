# mypy: allow-untyped-defs
"""A program's process: takes on the program's rights, compiles it once, forks per test, watches, kills, reports.

Runs in the worker, under the judge's Python (3.8+). In a process namespace it is process 1: the program can neither
signal nor trace it, everything that the program starts becomes its child in the end, and all of it ends with it.
"""

import gc
import os
import resource
import select
import signal
import time

REPORT_BYTES = 1 << 16
STDERR_BYTES = 2000  # of a test's standard error, its end is kept
BATCH_BYTES, BATCH_MS = 1 << 16, 5  # replies wait for company, but not for long
# A test past its limit is looked at so often, and has to have used so much of a processor since: 2 ms of a second.
IDLE_WINDOW_S, IDLE_SHARE = 1.0, 0.002
FORK_WORDS = ("fork", "multiprocessing", "concurrent", "exec", "eval", "import(", "getattr")  # what may start processes
BYTE_ORDER_MARK = "\ufeff"
PROCESS_CPU_CLOCK = 2  # beside a process's number: the kernel's clock of the processor time it has used
# What programs may find loaded already: importing these has no effect but that they are there.
IMPORTABLE = frozenset(
    "array bisect calendar cmath collections copy dataclasses datetime decimal enum fractions functools heapq io "
    "itertools json math numbers operator queue random re statistics string struct textwrap threading time types "
    "typing".split()
)
# By a package that programs' interpreters may have, what is imported for it: it takes a good part of a second.
PACKAGES = {"numpy": "numpy.random"}


def program_main(settings, modules, request, first):
    """The whole life of a program's process, from test number `first` on. Never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python's handler would let a program interrupt this process
        modules["confine"].confine(settings, modules, request)
        code = Program(settings, modules, request).run(first)
    except MemoryError:  # the limit is the program's: so long is its text, or what it was compiled to
        code = modules["protocol"].NO_MEMORY
    except BaseException as exc:
        try:
            worker = modules["protocol"]
            worker.reply(worker.FAILED, report=describe(exc))
        finally:
            os._exit(1)
    os._exit(code)


class Program:
    """A compiled program and its tests."""

    def __init__(self, settings, modules, request):
        self.worker = modules["protocol"]
        self.child = modules["child"]
        self.settings, self.modules, self.request = settings, modules, request
        *self.frame, self.source = self.read_texts()
        table = os.pread(self.worker.PAYLOAD_FD, self.worker.TEST.size * request.tests, sum(request.sizes))
        self.tests = list(self.worker.TEST.iter_unpack(table))
        # What the largest process may hold where its peak is what decides: the interpreter's share comes on top.
        self.most_memory = request.memory + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.alone = not any(word in self.source for word in FORK_WORDS)
        self.sampled = None
        self.replies, self.waiting_bytes = [], 0
        self.poll = select.poll()
        self.poll.register(self.worker.CONTROL_FD, select.POLLIN)
        self.ooms, self.compiling_s = b"", 0.0
        self.pausing = False

    def read_texts(self):
        """The texts before and behind the program, and the program, each as Python reads a file of it."""
        texts, at = [], 0
        for size in self.request.sizes:
            text = os.pread(self.worker.PAYLOAD_FD, size, at).decode("utf-8", "surrogatepass")
            texts.append(text[1:] if text[:1] == BYTE_ORDER_MARK else text)
            at += size
        return texts

    def run(self, first):
        """Compiles the program and runs the tests from number `first` on. Returns the process's exit code."""
        began = time.monotonic()
        codes = self.compile()
        if codes is None:
            return 0
        self.compiling_s = time.monotonic() - began
        os.write(self.worker.STAGE_END_FD, self.worker.COMPILED)
        fork_hooks = preload(codes, PACKAGES if self.settings["packages"] else {})
        start = self.child.prepare(self.modules, codes, self.source, fork_hooks, self.settings, self.request)
        self.ooms = self.count_ooms()
        gc.freeze()
        for index in range(first, self.request.tests):
            if not self.test(index, start) or (self.pausing and index + 1 < self.request.tests):
                self.flush()
                self.worker.reply(self.worker.STOPPED)
                return 0
            if self.box_is_dirty():
                self.flush()  # before anything else can run
                os.write(self.worker.STAGE_END_FD, self.worker.INDEX.pack(index + 1))
                return self.worker.DIRTY
        self.flush()
        return 0

    def compile(self):
        """What to execute, in order, the frame's texts each by itself; None if it isn't code, which the pool is told.

        A program so is what it would be in a file of its own: its first line is 1, its docstring and its imports from
        __future__ stand first.
        """
        prefix, suffix = self.frame
        texts = [(prefix, "before.py"), (self.source, "solution.py"), (suffix, "after.py")]
        try:
            return [
                compile(text, name, "exec", dont_inherit=True) for text, name in texts if text or text is self.source
            ]
        except BaseException as exc:
            text = self.modules["traceback_text"].format_exception(exc, self.source)
            report = text.encode("utf-8", "backslashreplace")
            self.worker.reply(self.worker.NOT_COMPILED, report=report)
            return None

    def test(self, index, start):
        """Runs one test and files its reply. False if the pool wants no more of this program."""
        offset, size, seed = self.tests[index]
        self.sampled = None
        fresh_streams()
        copy_input(self.worker.PAYLOAD_FD, offset, size)
        began, self.compiling_s = time.monotonic() - self.compiling_s, 0.0  # the first test pays for the compiler
        pid = os.fork()
        if pid == 0:
            self.child.test_main(start, self.settings, self.request, seed)
        pidfd = os.pidfd_open(pid)
        kind = self.wait(pidfd, pid, began)
        wall_s = time.monotonic() - began
        if kind != self.worker.ENDED:
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        os.close(pidfd)
        self.kill_rest()
        if kind == self.worker.STOPPED:
            return False
        self.file(kind, status, usage, wall_s)
        return True

    def wait(self, pidfd, pid, began):
        """Until the test ends by itself (not reaped), or has to be killed: says which."""
        deadline = began + self.request.wall_s
        poll, ended, control = self.poll, pidfd, self.worker.CONTROL_FD
        poll.register(ended, select.POLLIN)
        try:
            if self.replies:
                ready = poll.poll(BATCH_MS)
                if not ready:
                    self.flush()
            else:
                ready = []
            while not ready:
                left = deadline - time.monotonic()
                if left <= 0:
                    left = self.seconds_more(pid, began)
                    if left <= 0:
                        return self.worker.TIMED_OUT
                    deadline = time.monotonic() + left
                ready = poll.poll(left * 1000 + 1)
        finally:
            poll.unregister(ended)
        if any(fd == control for fd, _ in ready) and self.listen() == self.worker.STOP:
            return self.worker.STOPPED
        return self.worker.ENDED if any(fd == ended for fd, _ in ready) else self.wait(pidfd, pid, began)

    def seconds_more(self, pid, began):
        """For a test past its limit by the wall clock: how long it may go on, having had little of the processor.

        One that makes no use of the processor for a second waits for itself, not for the machine. Of a program that
        may have started others, nobody knows: they may be at work.
        """
        now, used = time.monotonic(), time.clock_gettime((~pid << 3) | PROCESS_CPU_CLOCK)
        sampled_at, used_then = self.sampled or (now, used)
        if now - sampled_at >= IDLE_WINDOW_S and self.alone and used - used_then < IDLE_SHARE * (now - sampled_at):
            return 0
        if now - sampled_at >= IDLE_WINDOW_S or not self.sampled:
            sampled_at, _ = self.sampled = now, used
        left = began + self.request.longest_s - now, self.request.wall_s - used, sampled_at + IDLE_WINDOW_S - now
        return max(min(left), 0)

    def listen(self):
        """Reads a message and returns its kind if it is about this request. This process ends with the stream."""
        try:
            data = self.worker.read_exactly(self.worker.CONTROL_FD, self.worker.MESSAGE.size)
        except Exception:
            os._exit(1)
        kind, number = self.worker.MESSAGE.unpack(data)[:2]
        if number != self.request.number:
            return None
        self.pausing = self.pausing or kind == self.worker.PAUSE
        return kind

    def kill_rest(self):
        """Kills and reaps what the test's process has left behind; all of it has become this process's children."""
        while True:
            try:
                pid = os.waitpid(-1, os.WNOHANG)[0]
            except ChildProcessError:
                return
            if pid == 0:
                if self.settings["namespaces"]:  # -1 would be the whole machine elsewhere
                    os.kill(-1, signal.SIGKILL)
                os.waitpid(-1, 0)

    def file(self, kind, status, usage, wall_s):
        """Adds a test's reply to those that wait, and sends them if it is time."""
        worker, output = self.worker, self.request.output
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        stdout_size = min(os.lseek(1, 0, os.SEEK_END), output + 1)
        size = os.lseek(2, 0, os.SEEK_END)
        stderr = os.pread(2, STDERR_BYTES, max(0, size - STDERR_BYTES)) if size else b""
        if size > STDERR_BYTES:
            stderr = b"[%d bytes cut]..." % (size - STDERR_BYTES) + stderr
        report, report_size = self.report_kind_and_size()
        ooms = self.count_ooms()
        oom, self.ooms = ooms != self.ooms, ooms
        oom = oom or (not self.settings["cgroup"] and usage.ru_maxrss * 1024 > self.most_memory)
        header = worker.REPLY.pack(
            kind,
            report,
            oom,
            code,
            usage.ru_utime + usage.ru_stime,
            wall_s,
            usage.ru_maxrss * 1024,
            stdout_size,
            len(stderr),
            report_size,
        )
        self.replies.append(header)
        self.waiting_bytes += stdout_size + report_size
        if self.waiting_bytes > BATCH_BYTES:  # what is long never is in this process's memory as a whole
            self.flush()
            self.send(1, 0, stdout_size)
            worker.write_all(worker.CONTROL_FD, stderr)
            self.send(worker.REPORT_FD, 1, report_size)
            return
        if stdout_size:
            self.replies.append(os.pread(1, stdout_size, 0))
        self.replies.append(stderr)
        if report_size:
            self.replies.append(os.pread(worker.REPORT_FD, report_size, 1))
        if self.request.eager or len(self.replies) > 256:
            self.flush()

    def send(self, fd, at, count):
        """Sends `count` bytes of a file to the pool, from `at` on."""
        while count:
            data = os.pread(fd, min(count, BATCH_BYTES), at)
            self.worker.write_all(self.worker.CONTROL_FD, data)
            at, count = at + len(data), count - len(data)

    def report_kind_and_size(self):
        """What kind of report the test's process has left, and the size of what follows: its text, or the results."""
        fd = self.worker.REPORT_FD
        size = os.lseek(fd, 0, os.SEEK_END)
        if not size:
            return self.worker.NO_REPORT, 0
        limit = self.request.output if self.request.functions else REPORT_BYTES
        return os.pread(fd, 1, 0), min(size - 1, limit)

    def count_ooms(self):
        """What tells whether the kernel has killed a process for the memory of this worker's cgroup."""
        return self.worker.count_ooms() if self.settings["cgroup"] else b""

    def flush(self):
        """Sends the replies that wait."""
        if self.replies:
            self.worker.write_all(self.worker.CONTROL_FD, b"".join(self.replies))
            self.replies, self.waiting_bytes = [], 0

    def box_is_dirty(self):
        """Whether anything was done to the scratch folder that the next test could see.

        Whatever is made or removed in it sets its time of change, which began as 0; programs can't set it back.
        """
        if not self.settings["box_bytes"]:
            return False
        box = os.stat(self.worker.BOX)
        return box.st_mtime != 0 or box.st_mode & 0o7777 != 0o1777


def fresh_file(number):
    """A new file without a name in any folder, on the lowest free descriptor, which must be `number`."""
    if os.memfd_create("judge", 0) != number:  # no close-on-exec: there is no exec
        raise RuntimeError("a descriptor is out of its place")


def fresh_streams():
    """New files on descriptors 0 to 3, streams and report: nothing of one test's reaches the next, not even a mode."""
    os.closerange(0, 4)
    for number in range(4):
        fresh_file(number)


def copy_input(source, offset, size):
    """Puts a test's input into standard input's file without bringing it into this process's memory."""
    while size:
        copied = os.sendfile(0, source, offset, size)
        if copied <= 0:
            raise RuntimeError("the input is shorter than announced")
        offset, size = offset + copied, size - copied
    os.lseek(0, 0, os.SEEK_SET)


def preload(codes, packages):
    """Imports here, once for all tests, what the program's top level imports. Returns the fork hooks they asked for.

    Of third-party modules, only `packages`; where one can't be imported, the program will find out.

    The hooks (of `random` and `threading`) would run after each fork of this process, at a cost, for nothing; tests
    register them for forks of their own.
    """
    hooks, register = [], os.register_at_fork
    os.register_at_fork = lambda **functions: hooks.append(functions)
    try:
        names = {name for code in codes for name in code.co_names}
        for name in IMPORTABLE.intersection(names):
            __import__(name)
        for name in names.intersection(packages):
            try:
                __import__(packages[name])
            except Exception:
                pass
    finally:
        os.register_at_fork = register
    return hooks


def describe(exc):
    """An exception of the judge's own, and the line it came from."""
    tb = exc.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    place = f"{tb.tb_frame.f_code.co_name}, line {tb.tb_lineno}: " if tb is not None else ""
    return (place + repr(exc)).encode("utf-8", "backslashreplace")
