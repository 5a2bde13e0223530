# mypy: allow-untyped-defs
"""A program's process: drops its rights, compiles the program once, forks per test, enforces limits, reports.

Runs in the worker, under the judge's Python (3.8+). In a process namespace it is process 1: the program can neither
signal nor trace it, orphans that the program starts become its children, and all of them end with it.
"""

import gc
import os
import resource
import select
import signal
import time

REPORT_BYTES = 1 << 16
STDERR_BYTES = 2000  # size of the end of a test's standard error that is reported
BATCH_BYTES, BATCH_MS = 1 << 16, 5  # replies are sent together up to this size and delay
# A test past its wall limit is checked once per window; it is idle if it used less than this share of a processor.
IDLE_WINDOW_S, IDLE_SHARE = 1.0, 0.002
# A program without these words can't start processes.
FORK_WORDS = ("fork", "multiprocessing", "concurrent", "exec", "eval", "import(", "getattr")
BYTE_ORDER_MARK = "\ufeff"
PROCESS_CPU_CLOCK = 2  # with a process's id: the kernel's clock of its processor time
# Modules that may be imported before the program runs: importing them has no other effect.
IMPORTABLE = frozenset(
    "array bisect calendar cmath collections copy dataclasses datetime decimal enum fractions functools heapq io "
    "itertools json math numbers operator queue random re statistics string struct textwrap threading time types "
    "typing".split()
)
# {package that the interpreter may have: module preloaded for it}. Importing takes a large part of a second.
PACKAGES = {"numpy": "numpy.random"}


def program_main(settings, modules, request, first):
    """Runs a program's process, from test number `first` on, and exits. Never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # with Python's handler, a program could interrupt this process
        modules["confine"].confine(settings, modules, request)
        code = Program(settings, modules, request).run(first)
    except MemoryError:  # the program's text or its compiled form exceeds the program's limit
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
        # Without a cgroup, a process's peak memory decides; the interpreter's own memory is added to the limit.
        self.most_memory = request.memory + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.alone = not any(word in self.source for word in FORK_WORDS)
        self.sampled = None
        self.replies, self.waiting_bytes = [], 0
        self.poll = select.poll()
        self.poll.register(self.worker.CONTROL_FD, select.POLLIN)
        self.ooms, self.compiling_s = b"", 0.0
        self.pausing = False

    def read_texts(self):
        """The texts before and after the program, and the program, without byte order marks."""
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
        """The code objects to execute, in order; None if the program doesn't compile, which is reported to the pool.

        The frame's texts are compiled separately, so that the program is as in its own file: it begins at line 1, and
        its docstring and imports from __future__ come first.
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
        """Runs one test and queues its reply. Returns False if the pool has stopped this program."""
        offset, size, seed = self.tests[index]
        self.sampled = None
        fresh_streams()
        copy_input(self.worker.PAYLOAD_FD, offset, size)
        began, self.compiling_s = time.monotonic() - self.compiling_s, 0.0  # the first test's time includes compiling
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
        """Waits until the test ends (not reaped) or must be killed. Returns ENDED, TIMED_OUT or STOPPED."""
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
        """Seconds until a test past its wall limit must be checked again; 0 if it is out of time.

        The test may run until it has used `wall_s` seconds of the processor, reached `longest_s` on the wall clock, or
        been idle for a window, so that it waits for itself rather than for a busy machine. Programs that may start
        other processes never count as idle, since those may be working.
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
        """Reads a message. Returns its kind if it is about this request, else None. Exits at the end of the stream."""
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
        """Kills and reaps processes that the test left, which have become children of this process."""
        while True:
            try:
                pid = os.waitpid(-1, os.WNOHANG)[0]
            except ChildProcessError:
                return
            if pid == 0:
                if self.settings["namespaces"]:  # without a namespace, -1 would be the whole machine
                    os.kill(-1, signal.SIGKILL)
                os.waitpid(-1, 0)

    def file(self, kind, status, usage, wall_s):
        """Queues a test's reply, and sends the queue if it is due."""
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
        if self.waiting_bytes > BATCH_BYTES:  # long output is sent in parts, to save memory
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
        """(kind of the test's report, size in bytes of its text or results)."""
        fd = self.worker.REPORT_FD
        size = os.lseek(fd, 0, os.SEEK_END)
        if not size:
            return self.worker.NO_REPORT, 0
        limit = self.request.output if self.request.functions else REPORT_BYTES
        return os.pread(fd, 1, 0), min(size - 1, limit)

    def count_ooms(self):
        """A text that changes when the kernel kills a process because the worker's cgroup is out of memory."""
        return self.worker.count_ooms() if self.settings["cgroup"] else b""

    def flush(self):
        """Sends the queued replies."""
        if self.replies:
            self.worker.write_all(self.worker.CONTROL_FD, b"".join(self.replies))
            self.replies, self.waiting_bytes = [], 0

    def box_is_dirty(self):
        """Whether the scratch folder has changed, so that the next test could see it.

        Its modification time starts as 0. Creating or removing anything in it changes that; programs can't reset it.
        """
        if not self.settings["box_bytes"]:
            return False
        box = os.stat(self.worker.BOX)
        return box.st_mtime != 0 or box.st_mode & 0o7777 != 0o1777


def fresh_file(number):
    """Opens a new memory file on the lowest free descriptor, which must be `number`."""
    if os.memfd_create("judge", 0) != number:  # without close-on-exec: programs can't exec
        raise RuntimeError("a descriptor is out of its place")


def fresh_streams():
    """Opens new files on descriptors 0 to 3 (streams and report), so that tests share no state through them."""
    os.closerange(0, 4)
    for number in range(4):
        fresh_file(number)


def copy_input(source, offset, size):
    """Copies a test's input into the file of standard input, without reading it into this process's memory."""
    while size:
        copied = os.sendfile(0, source, offset, size)
        if copied <= 0:
            raise RuntimeError("the input is shorter than announced")
        offset, size = offset + copied, size - copied
    os.lseek(0, 0, os.SEEK_SET)


def preload(codes, packages):
    """Imports modules that the program uses, once for all tests. Returns the fork hooks that they register.

    Of third-party modules, only `packages`; errors are left for the program to raise.

    The hooks (of `random` and `threading`) aren't needed in forks of this process and would slow them; each test
    registers them for its own forks.
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
    """An exception of the judge itself with its place, as bytes."""
    tb = exc.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    place = f"{tb.tb_frame.f_code.co_name}, line {tb.tb_lineno}: " if tb is not None else ""
    return (place + repr(exc)).encode("utf-8", "backslashreplace")
