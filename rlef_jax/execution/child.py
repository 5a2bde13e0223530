# mypy: allow-untyped-defs
"""Runs one test in its forked process: streams, the program, the interpreter's shutdown.

Runs in the worker, under the judge's Python (3.8+). The program can change everything in this process, so its reports
aren't trusted: a report can only explain a failure or hold a function's results, which are compared outside.
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
POOL_THREADS = 4  # what a `multiprocessing` pool needs besides its processes: the program and three threads
# A program with one of these words may need the interpreter's shutdown, for open files or finalizers. For others the
# process ends without it, which is faster.
TEARDOWN_WORDS = ("open", "__del__", "IO", "Wrap", "Write", "weakref", "finalize", "exec", "eval", "import(", "getattr")
# A program without these words can neither send itself SIGINT nor inspect its handler.
INTERRUPT_WORDS = ("signal", "kill", "SIGINT", "interrupt", "ctypes", "exec", "eval", "import(", "getattr")


class Start:
    """What all tests of a program need, prepared once before the forks."""

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
    """Creates the stream objects and the main module in the program's process; each test's fork inherits them."""
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
        import random  # noqa: F401  (imported here, since each test seeds it)
    show_cores(min(settings["cores"], request.processes - POOL_THREADS))
    return Start(modules, codes, source, fork_hooks, main, settings, request)


def show_cores(count):
    """Makes `os` report `count` cores (at least 1), so that a pool with a process per core stays within the limits."""
    count, affinity = max(1, count), os.sched_getaffinity

    def cpu_count():
        return count

    def sched_getaffinity(pid):
        return set(sorted(affinity(pid))[:count])

    os.cpu_count, os.sched_getaffinity = cpu_count, sched_getaffinity
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        os.process_cpu_count = cpu_count


def test_main(start, settings, request, seed):
    """Runs the program on the input in descriptor 0 and exits with its exit code. Never returns."""
    code = 1
    try:
        os.closerange(4, start.last_fd + 1)  # keep only the streams' descriptors and the report's
        for name, limits in start.limits:
            resource.setrlimit(name, limits)
        if settings["child_filter"]:
            filter_calls(settings, start.kernel)
        if start.interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for hook in start.fork_hooks:
            os.register_at_fork(**hook)
        if "random" in sys.modules:
            sys.modules["random"].seed(seed)  # depends on the input only, so it is the same in every worker
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed(seed)
        code = run(start, request)
    finally:
        os._exit(code)


def test_limits(request, cores):
    """The resource limits of a test's process only: [(resource, (soft, hard))]."""
    limits = []
    seconds = int(request.wall_s * cores) + 2  # a fallback: the time limit is enforced from outside
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or hard > seconds:
        limits.append((resource.RLIMIT_CPU, (seconds, seconds + 1)))
    margin = 65 if request.functions else 1
    limits.append((resource.RLIMIT_FSIZE, (request.output + margin,) * 2))
    return limits


def filter_calls(settings, kernel):
    """Installs the second filter: no further processes, and no signals to others."""
    if not settings["namespaces"]:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    pid_mark = settings["own_pid_mark"].to_bytes(4, sys.byteorder)
    kernel.install_filter(settings["child_filter"].replace(pid_mark, os.getpid().to_bytes(4, sys.byteorder)))


def run(start, request):
    """Runs the program as `python solution.py` would, or calls its function. Returns the exit code."""
    exit_code, calls = 1, b""
    try:
        if request.functions:  # descriptor 0 holds calls: the program's standard input is empty
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
    """Whether an exception means that address space ran out.

    Address space is limited only without a control group, which would limit used memory instead.
    """
    return getattr(exc, "errno", None) == errno.ENOMEM or (
        isinstance(exc, RuntimeError) and str(exc) == "can't start new thread"
    )


def exit_code_of(exc):
    """The exit code of a SystemExit, as in CPython; prints a message argument."""
    if exc.code is None:
        return 0
    if isinstance(exc.code, int):
        return exc.code & 0xFF
    print(exc.code, file=sys.stderr)
    return 1


def finish(start, exit_code):
    """The interpreter's shutdown as far as programs rely on it: joins threads, runs exit functions, flushes twice.

    Returns the exit code.
    """
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        if "atexit" in sys.modules:
            sys.modules["atexit"]._run_exitfuncs()
        flush(sys.stdout, sys.stderr)
        if start.teardown:
            streams = sys.__stdout__, sys.__stderr__
            start.main.__dict__.clear()  # flushes files that the program opened on descriptor 1
            start.collector.collect()
            flush(*streams)
    except MemoryError:
        replace_report(OUT_OF_MEMORY, "MemoryError")
        return 1
    except BaseException:
        return 120  # CPython's code for a failed flush
    return exit_code


def flush(*streams):
    """Flushes the streams that are open."""
    for stream in streams:
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()


def replace_report(kind, text):
    """Replaces the report by the reason why the program failed."""
    try:
        os.lseek(3, 0, os.SEEK_SET)
        os.ftruncate(3, 0)
    except OSError:
        pass
    write_report(kind + text.encode("utf-8", "backslashreplace"))


def write_report(report):
    """Appends to the report; errors are ignored."""
    view = memoryview(report)
    try:
        while view:
            view = view[os.write(3, view) :]
    except (OSError, io.UnsupportedOperation):
        pass
