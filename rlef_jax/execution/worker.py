# mypy: allow-untyped-defs
"""The judge's worker: a lean Python that forks one process per program, which forks one per test.

Runs alone, under the judge's Python (3.8+), as the launcher left it: confined, with a clean environment
(PYTHONHASHSEED fixed, so that the order of sets is the same in every worker). It never imports the package and never
sees an expected output. Its memory is every fork's cost, so it imports next to nothing.

Messages are big-endian structs on a socket. The pool writes a program and its inputs into a memory file that it shares
with the worker, then sends a `REQUEST`; the program's process answers with one `REPLY` per test as tests end. Kind C
stands for all tests (the program doesn't compile), kind D for the program's process having died, kind X for the
worker having failed, kind S for what a `STOP` or `PAUSE` has cut short.
"""

import fcntl
import os
import select
import signal
import struct
import sys
import time

# kind, number of the request, wall_s, patience, memory, output bytes, processes, flags, bytes of the text before the
# program, of the one behind it and of the program, tests
MESSAGE = struct.Struct("!cIddQQIIQQQI")
REQUEST, STOP, PAUSE = b"R", b"S", b"P"  # PAUSE: as STOP, but the test that runs may end
EAGER, FUNCTIONS = 1, 2  # flags: answer after each test; inputs are calls of functions, not standard input
TEST = struct.Struct("!QQI")  # where an input begins in the file, its bytes, the seed of its random numbers
# kind, report's kind, out of memory, exit code (< 0: signal), cpu_s, wall_s, peak bytes; stdout, stderr, report bytes
REPLY = struct.Struct("!cc?iddQIII")
ENDED, TIMED_OUT, NOT_COMPILED, DIED, FAILED, STOPPED = b"E", b"T", b"C", b"D", b"X", b"S"
NO_REPORT = b"-"
READY = b"R"  # before any request: here I am

REPORT_FD, CONTROL_FD, PAYLOAD_FD, NAMESPACE_FD, LANDLOCK_FD, OOM_FD, STAGE_FD, STAGE_END_FD = range(3, 11)
LAST_FD = 31  # a program's process closes all from CONTROL_FD on to here
BOX = "/box/cwd"  # a mount below the folder that Landlock lets be written: its rules are blind to mount points
DIRTY, NO_MEMORY = 17, 18  # exit codes of a program's process: the scratch folder must be made anew; its memory is full
INDEX = struct.Struct("!I")
COMPILED = b"G"
COMPILE_SLACK_S = 0.5  # beyond a test's wall limit, for starting a program's process
CLONE_NEWPID = 0x20000000
PRELOADED = ("_collections_abc", "functools", "heapq", "math", "collections", "itertools", "bisect")
THREAD_STACK_BYTES = 8 << 20  # glibc's default would be all of the stack's limit per thread


class PoolGoneError(Exception):
    """The other end of the control socket was closed."""


class Server:
    """Forks a program's process per request, waits for it, cleans up after it."""

    def __init__(self, settings, modules):
        self.settings = settings
        self.kernel = modules["kernel"]
        self.program = modules["program"]
        self.modules = modules
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LAST_FD + 1) for fd in ends]  # out of each other's way
        for fd, number in zip(high, (STAGE_FD, STAGE_END_FD)):
            os.dup2(fd, number, inheritable=False)
        for fd in (*high, *(fd for fd in ends if fd not in (STAGE_FD, STAGE_END_FD))):
            os.close(fd)
        self.stage = STAGE_FD

    def serve(self):
        """Answers requests until the pool closes the socket."""
        while True:
            message = MESSAGE.unpack(read_exactly(CONTROL_FD, MESSAGE.size))
            if message[0] == REQUEST:  # else a STOP that came when all was done
                self.run(Request(message))

    def run(self, request):
        """All tests of a program: in one process, unless files left behind by a test call for a new one."""
        first, ooms = 0, self.count_ooms()
        while first < request.tests or not request.tests:
            pid = self.fork(request, first)
            compiled = self.wait_for_compiler(pid, request)
            status = os.waitpid(pid, 0)[1]
            stage_data = self.read_stage()
            if not compiled:
                compiled = stage_data[:1] == COMPILED
            clean = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
            if clean:
                return
            self.clean_box()
            if not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == DIRTY):
                code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                answer_died(compiled, code, code == NO_MEMORY or self.count_ooms() != ooms)
                return
            first = INDEX.unpack(stage_data[-INDEX.size :])[0]

    def fork(self, request, first):
        """Starts the program's process: process 1 of a process namespace, where there are namespaces."""
        spaces = self.settings["namespaces"]
        if spaces:
            self.kernel.call("unshare", CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            self.program.program_main(self.settings, self.modules, request, first)
        if spaces:
            self.kernel.call("setns", NAMESPACE_FD, CLONE_NEWPID)
        return pid

    def wait_for_compiler(self, pid, request):
        """Until the program has been compiled (True), or its process has ended or been killed for taking too long."""
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self.stage, select.POLLIN)
        ready = poll.poll((request.longest_s + COMPILE_SLACK_S) * 1000)
        os.close(pidfd)
        if not ready:
            os.kill(pid, signal.SIGKILL)
        return any(fd == self.stage for fd, _ in ready) and os.read(self.stage, 1) == COMPILED

    def count_ooms(self):
        """What tells whether the kernel has killed a process for the memory of this worker's cgroup."""
        return count_ooms() if self.settings["cgroup"] else b""

    def read_stage(self):
        """What else a program's process has written before it ended."""
        try:
            return os.read(self.stage, 64)
        except BlockingIOError:
            return b""

    def clean_box(self):
        """A new scratch folder in the place of the old one."""
        if self.settings["box_bytes"]:
            self.kernel.umount(BOX)
            mount_box(self.kernel, self.settings)


class Request:
    """What to run: the message's fields by name."""

    def __init__(self, message):
        _, self.number, self.wall_s, patience, self.memory, self.output, self.processes, *rest = message
        flags, *self.sizes, self.tests = rest
        self.longest_s = self.wall_s * max(1.0, patience)
        self.eager = bool(flags & EAGER)
        self.functions = bool(flags & FUNCTIONS)


def mount_box(kernel, settings):
    """The scratch folder: in memory, small, the only place that can be written."""
    options = f"size={settings['box_bytes']},nr_inodes={settings['box_inodes']},mode=1777"
    kernel.mount("box", BOX, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, options)
    os.utime(BOX, (0, 0))  # what `Program.box_is_dirty` looks at


def answer_died(compiled, code, out_of_memory):
    """A reply for the program's process itself: its compiler crashed or took too long, or something killed it."""
    if compiled:
        reply(DIED, code=code, out_of_memory=out_of_memory)
    else:
        reply(NOT_COMPILED, report=b"SyntaxError: the program could not be compiled")


def count_ooms():
    """The count in this worker's cgroup's file, as text: all that matters is whether it changes."""
    text = os.pread(OOM_FD, 4096, 0)
    return text[text.find(b"oom_kill ") :]


def reply(kind, code=0, report=b"", out_of_memory=False):
    """Sends one reply to the pool that is not about a test."""
    write_all(CONTROL_FD, REPLY.pack(kind, NO_REPORT, out_of_memory, code, 0.0, 0.0, 0, 0, 0, len(report)) + report)


def write_all(fd, data):
    """Writes every byte of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_exactly(fd, count):
    """`count` bytes from the pool. PoolGoneError at the end of the stream."""
    parts = []
    while count:
        part = os.read(fd, count)
        if not part:
            raise PoolGoneError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def warm_up(kernel):
    """What every program needs: common modules, small thread stacks, `exit` and `quit` (site is not loaded)."""
    import _sitebuiltins
    import _thread
    import builtins
    import gc

    for name in PRELOADED:
        __import__(name)
    _thread.stack_size(THREAD_STACK_BYTES)
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    gc.collect()
    gc.freeze()
    kernel.give_back_memory()


def main(bundle):
    """Serves until the pool closes the socket. `bundle`: "settings" and "sources", the other files' texts by name."""
    modules = {"protocol": sys.modules.pop(__name__)}  # not for programs to import
    for name, text in bundle["sources"].items():
        modules[name] = type(sys)(name)
        exec(compile(text, name + ".py", "exec"), modules[name].__dict__)
    settings = bundle["settings"]
    if settings["landlock"]:
        ruleset = modules["kernel"].landlock_ruleset(*settings["landlock"])
        os.dup2(ruleset, LANDLOCK_FD, inheritable=False)
        if ruleset != LANDLOCK_FD:
            os.close(ruleset)
    if settings["box_bytes"]:
        mount_box(modules["kernel"], settings)
    sys.path += settings["packages"]
    warm_up(modules["kernel"])
    write_all(CONTROL_FD, READY)
    try:
        Server(settings, modules).serve()
    except PoolGoneError:
        pass
    except Exception as exc:
        reply(FAILED, report=repr(exc).encode("utf-8", "backslashreplace"))
        time.sleep(0.1)  # the pool reads it before it sees the end of the stream
