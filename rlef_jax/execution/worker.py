# mypy: allow-untyped-defs
"""The judge's worker: a small Python process that forks one process per program, which forks one per test.

Runs under the judge's Python (3.8+) in the sandbox that the launcher built, with a clean environment (PYTHONHASHSEED is
fixed, so that sets have the same order in every worker). It never imports the package and never sees an expected
output. It imports very little, since each fork copies its memory.

Messages are big-endian structs on a socket. The pool writes a program and its inputs to a memory file that it shares
with the worker, then sends a `REQUEST`. The program's process answers with one `REPLY` per test. Other kinds of reply:
C stands for all tests (the program doesn't compile), D means that the program's process died, X that the worker failed,
S that a `STOP` or `PAUSE` ended the request.
"""

import fcntl
import os
import select
import signal
import struct
import sys
import time

# kind, number of the request, wall_s, wall_patience, memory, output bytes, processes, flags, bytes of the text before
# the program, of the text after it and of the program, number of tests
MESSAGE = struct.Struct("!cIddQQIIQQQI")
REQUEST, STOP, PAUSE = b"R", b"S", b"P"  # PAUSE: like STOP, but after the current test
EAGER, FUNCTIONS = 1, 2  # flags: answer after each test; inputs are calls of functions, not standard input
TEST = struct.Struct("!QQI")  # an input's offset in the file, its size in bytes, its random seed
# kind, report's kind, out of memory, exit code (< 0: signal), cpu_s, wall_s, peak bytes; stdout, stderr, report bytes
REPLY = struct.Struct("!cc?iddQIII")
ENDED, TIMED_OUT, NOT_COMPILED, DIED, FAILED, STOPPED = b"E", b"T", b"C", b"D", b"X", b"S"
NO_REPORT = b"-"
READY = b"R"  # sent once, before any request

REPORT_FD, CONTROL_FD, PAYLOAD_FD, NAMESPACE_FD, LANDLOCK_FD, OOM_FD, STAGE_FD, STAGE_END_FD = range(3, 11)
LAST_FD = 31  # a program's process closes descriptors from CONTROL_FD to this one
BOX = "/box/cwd"  # mounted below the folder that Landlock allows to write: its rules ignore mount points
DIRTY, NO_MEMORY = 17, 18  # exit codes of a program's process: the scratch folder must be replaced; out of memory
INDEX = struct.Struct("!I")
COMPILED = b"G"
COMPILE_SLACK_S = 0.5  # extra time for starting a program's process
CLONE_NEWPID = 0x20000000
PRELOADED = ("_collections_abc", "functools", "heapq", "math", "collections", "itertools", "bisect")
THREAD_STACK_BYTES = 8 << 20  # glibc's default would be the whole stack limit per thread


class PoolGoneError(Exception):
    """Raised if the pool has closed the control socket."""


class Server:
    """Forks a program's process per request, waits for it, cleans up after it."""

    def __init__(self, settings, modules):
        self.settings = settings
        self.kernel = modules["kernel"]
        self.program = modules["program"]
        self.modules = modules
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # First moved out of the way of the fixed numbers.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LAST_FD + 1) for fd in ends]
        for fd, number in zip(high, (STAGE_FD, STAGE_END_FD)):
            os.dup2(fd, number, inheritable=False)
        for fd in (*high, *(fd for fd in ends if fd not in (STAGE_FD, STAGE_END_FD))):
            os.close(fd)
        self.stage = STAGE_FD

    def serve(self):
        """Answers requests until the pool closes the socket."""
        while True:
            message = MESSAGE.unpack(read_exactly(CONTROL_FD, MESSAGE.size))
            if message[0] == REQUEST:  # else a late STOP or PAUSE
                self.run(Request(message))

    def run(self, request):
        """Runs all tests of a program, in one process unless a test leaves files behind: then in a new one."""
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
        """Starts the program's process, with namespaces as process 1 of a new process namespace. Returns its id."""
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
        """Waits for the compiler. Returns True once it is done, False if the process ended or took too long."""
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
        """A text that changes when the kernel kills a process because the worker's cgroup is out of memory."""
        return count_ooms() if self.settings["cgroup"] else b""

    def read_stage(self):
        """The remaining bytes that a program's process wrote to the stage pipe before it ended."""
        try:
            return os.read(self.stage, 64)
        except BlockingIOError:
            return b""

    def clean_box(self):
        """Replaces the scratch folder by a new one."""
        if self.settings["box_bytes"]:
            self.kernel.umount(BOX)
            mount_box(self.kernel, self.settings)


class Request:
    """A request's fields by name."""

    def __init__(self, message):
        _, self.number, self.wall_s, patience, self.memory, self.output, self.processes, *rest = message
        flags, *self.sizes, self.tests = rest
        self.longest_s = self.wall_s * max(1.0, patience)
        self.eager = bool(flags & EAGER)
        self.functions = bool(flags & FUNCTIONS)


def mount_box(kernel, settings):
    """Mounts the scratch folder: small, in memory, the only writable place."""
    options = f"size={settings['box_bytes']},nr_inodes={settings['box_inodes']},mode=1777"
    kernel.mount("box", BOX, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, options)
    os.utime(BOX, (0, 0))  # `Program.box_is_dirty` checks this time


def answer_died(compiled, code, out_of_memory):
    """Sends the reply for a program's process that died, while compiling (NOT_COMPILED) or later (DIED)."""
    if compiled:
        reply(DIED, code=code, out_of_memory=out_of_memory)
    else:
        reply(NOT_COMPILED, report=b"SyntaxError: the program could not be compiled")


def count_ooms():
    """The part of the cgroup's file that counts processes killed for memory, as bytes to compare."""
    text = os.pread(OOM_FD, 4096, 0)
    return text[text.find(b"oom_kill ") :]


def reply(kind, code=0, report=b"", out_of_memory=False):
    """Sends the pool a reply that isn't about a test."""
    write_all(CONTROL_FD, REPLY.pack(kind, NO_REPORT, out_of_memory, code, 0.0, 0.0, 0, 0, 0, len(report)) + report)


def write_all(fd, data):
    """Writes every byte of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_exactly(fd, count):
    """Reads `count` bytes from the pool. Raises PoolGoneError at the end of the stream."""
    parts = []
    while count:
        part = os.read(fd, count)
        if not part:
            raise PoolGoneError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def warm_up(kernel):
    """Prepares what every program needs: common modules, small thread stacks, `exit`, `quit` (without `site`)."""
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
    """Serves until the pool closes the socket. `bundle` has "settings" and "sources", the other modules' texts."""
    modules = {"protocol": sys.modules.pop(__name__)}  # so that programs can't import it
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
        time.sleep(0.1)  # lets the pool read it before the stream ends
