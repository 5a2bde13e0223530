# mypy: allow-untyped-defs
"""What happens in the forked process of one test: streams, the program, the end of an interpreter.

Runs in the worker, under the judge's Python (3.8+). The program can reach whatever is in this process, so nothing here
is trusted once it runs: a report can only explain a failure, or hold a function's results, which are compared outside.
"""

import builtins
import errno
import gc
import io
import os
import resource
import signal
import sys

EXCEPTION, OUT_OF_MEMORY, VALUES = b"E", b"M", b"V"  # kinds of a report
POOL_THREADS = 4  # what a pool of processes needs beside them: the program itself and three threads
# What a program needs the interpreter's last breath for: files left open, finalizers. Where none of these words is in
# its text, its objects go with the process, unvisited.
TEARDOWN_WORDS = ("open", "__del__", "IO", "Wrap", "Write", "weakref", "finalize", "exec", "eval", "import(", "getattr")
# Without these in its text, a program neither sends itself SIGINT nor asks what that would do.
INTERRUPT_WORDS = ("signal", "kill", "SIGINT", "interrupt", "ctypes", "exec", "eval", "import(", "getattr")


class Start:
    """What all tests of a program begin with, made once."""

    def __init__(self, modules, codes, source, fork_hooks, main, settings, request):
        self.codes = codes
        self.source = source
        self.fork_hooks = fork_hooks
        self.main = main
        self.format_exception = modules["traceback_text"].format_exception
        self.calls = modules["calls"]
        self.collector = gc
        self.kernel = modules["kernel"]
        self.last_fd = modules["protocol"].LAST_FD
        self.teardown = any(word in source for word in TEARDOWN_WORDS)
        self.interrupts = any(word in source for word in INTERRUPT_WORDS)
        self.limits = test_limits(request, settings["cores"])
        self.cgroup = settings["cgroup"]


def prepare(modules, codes, source, fork_hooks, settings, request):
    """Makes the streams' objects and the main module, in the program's process: a test's fork copies them unused."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        errors = "backslashreplace" if name == "stderr" else "surrogateescape"
        buffering = 1 if name == "stderr" else -1
        stream = open(fd, mode, buffering, encoding="utf-8", errors=errors, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    sys.argv[:] = ["solution.py"]
    main = type(sys)("__main__" if not request.functions else "solution")
    main.__dict__.update(__builtins__=builtins, __file__="solution.py")
    sys.modules[main.__name__] = main
    if "random" in source and "random" not in sys.modules:
        import random  # noqa: F401  (seeded per test, wherever the program imports it)
    show_cores(min(settings["cores"], request.processes - POOL_THREADS))
    return Start(modules, codes, source, fork_hooks, main, settings, request)


def show_cores(count):
    """Has `os` name so many cores, at least one: what a pool of processes makes as many of must fit the limits."""
    count, affinity = max(1, count), os.sched_getaffinity

    def cpu_count():
        return count

    def sched_getaffinity(pid):
        return set(sorted(affinity(pid))[:count])

    os.cpu_count, os.sched_getaffinity = cpu_count, sched_getaffinity
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        os.process_cpu_count = cpu_count


def test_main(start, settings, request, seed):
    """Runs the program on what descriptor 0 holds and exits as it does. Never returns."""
    code = 1
    try:
        os.closerange(4, start.last_fd + 1)  # no descriptor but its streams' and the report's
        for name, limits in start.limits:
            resource.setrlimit(name, limits)
        if settings["child_filter"]:
            filter_calls(settings, start.kernel)
        if start.interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for hook in start.fork_hooks:
            os.register_at_fork(**hook)
        if "random" in sys.modules:
            sys.modules["random"].seed(seed)  # differs by input, yet the same in every worker
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed(seed)
        code = run(start, request)
    finally:
        os._exit(code)


def test_limits(request, cores):
    """The resource limits that only a test's process takes: (resource, (soft, hard)) of each."""
    limits = []
    seconds = int(request.wall_s * cores) + 2  # a second line: time is watched from outside
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or hard > seconds:
        limits.append((resource.RLIMIT_CPU, (seconds, seconds + 1)))
    room = 65 if request.functions else 1
    limits.append((resource.RLIMIT_FSIZE, (request.output + room,) * 2))
    return limits


def filter_calls(settings, kernel):
    """A second filter: a single process, which may signal no other."""
    if not settings["namespaces"]:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    own = settings["own_pid_mark"].to_bytes(4, sys.byteorder)
    kernel.install_filter(settings["child_filter"].replace(own, os.getpid().to_bytes(4, sys.byteorder)))


def run(start, request):
    """Runs the program as `python solution.py` would, or calls its function. Returns the exit code."""
    exit_code, calls = 1, b""
    try:
        if request.functions:  # these are no standard input of the program's: it has none
            calls = os.pread(0, os.fstat(0).st_size, 0)
            os.ftruncate(0, 0)
        for code in start.codes:
            exec(code, start.main.__dict__)
        if request.functions:
            write_report(VALUES)
            for result in start.calls.call_results(start.main.__dict__, calls, request.output):
                write_report(result)
        exit_code = 0
    except SystemExit as exc:
        exit_code = exit_code_of(exc)
    except MemoryError:
        replace_report(OUT_OF_MEMORY, "MemoryError")
    except BaseException as exc:
        kind = OUT_OF_MEMORY if not start.cgroup and reserved_too_much(exc) else EXCEPTION
        replace_report(kind, start.format_exception(exc, start.source))
    return finish(start, exit_code)


def reserved_too_much(exc):
    """Whether address space has run out, which has a limit where no control group counts the memory that is touched."""
    return getattr(exc, "errno", None) == errno.ENOMEM or (
        isinstance(exc, RuntimeError) and str(exc) == "can't start new thread"
    )


def exit_code_of(exc):
    """What `sys.exit(...)` means, as CPython has it."""
    if exc.code is None:
        return 0
    if isinstance(exc.code, int):
        return exc.code & 0xFF
    print(exc.code, file=sys.stderr)
    return 1


def finish(start, exit_code):
    """What programs rely on at the interpreter's end: threads joined, exit functions run, buffers flushed (twice)."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        if "atexit" in sys.modules:
            sys.modules["atexit"]._run_exitfuncs()
        flush(sys.stdout, sys.stderr)
        if start.teardown:
            streams = sys.__stdout__, sys.__stderr__
            start.main.__dict__.clear()  # files that the program opened on descriptor 1 are flushed when they go
            start.collector.collect()
            flush(*streams)
    except MemoryError:
        replace_report(OUT_OF_MEMORY, "MemoryError")
        return 1
    except BaseException:
        return 120  # CPython's code for a failed flush
    return exit_code


def flush(*streams):
    """Flushes what there is to flush."""
    for stream in streams:
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()


def replace_report(kind, text):
    """Reports why the program failed, in the place of what has been reported."""
    try:
        os.lseek(3, 0, os.SEEK_SET)
        os.ftruncate(3, 0)
    except OSError:
        pass
    write_report(kind + text.encode("utf-8", "backslashreplace"))


def write_report(report):
    """Adds to the report; what can't be written says nothing."""
    view = memoryview(report)
    try:
        while view:
            view = view[os.write(3, view) :]
    except (OSError, io.UnsupportedOperation):
        pass
