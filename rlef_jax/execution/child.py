# mypy: allow-untyped-defs
"""What happens in the forked child of one test: limits, fresh streams, the program, the end of an interpreter.

Loaded by the worker from this file, under the judge's Python (3.8+); imports nothing of the package. The program
can reach whatever is in this process, so nothing here is trusted once it runs: a report can only explain a failure.
"""

import atexit
import builtins
import gc
import marshal
import os
import resource
import signal
import sys
import zlib

REPORT_FD = 3  # where the program's own exception is told
READY_FD = 4  # closed before the program starts: how far the child came, and the compiled code
EXCEPTION, OUT_OF_MEMORY = b"E", b"M"  # of the report
SET_UP, COMPILED, REFUSED, END = b"S", b"C", b"R", b"."  # of the ready file
PR_SET_PDEATHSIG = 1


def be_child(body, files, limits, scratch, libc):
    """Takes the limits and the descriptors, runs `body`, exits with the code that it returns. Never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.chdir(scratch)
        take_descriptors(files)
        set_limits(limits)
        open_streams()
        os.write(READY_FD, SET_UP)
        code = body()
    except BaseException as exc:
        try:
            os.write(2, repr(exc).encode("utf-8", "backslashreplace"))
        finally:
            os._exit(1)
    os._exit(code)


def take_descriptors(files):
    """stdin, stdout, stderr, report, ready to 0-4, and nothing else left open."""
    high = [os.dup2(fd, 64 + i) for i, fd in enumerate(files)]  # out of each other's way first
    for target, fd in enumerate(high):
        os.dup2(fd, target, inheritable=target <= 2)
    os.closerange(len(files), 256)


def set_limits(limits):
    """Resource limits of the child. The wall clock is the worker's; CPU time is only a second line behind it."""
    seconds = int(limits.wall_s) + 2
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or hard > seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    for name, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, limits.memory_bytes),
    ):
        lower(name, value)


def lower(name, value):
    """Sets a resource's soft and hard limit, as far as the hard one allows."""
    hard = resource.getrlimit(name)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(name, (value, value))


def open_streams():
    """Fresh standard streams on descriptors 0-2, made as the interpreter makes them."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        errors = "backslashreplace" if name == "stderr" else "surrogateescape"
        buffering = 1 if name == "stderr" else -1
        stream = open(fd, mode, buffering, encoding="utf-8", errors=errors, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv[:] = ["solution.py"]


def compile_program(source, format_exception):
    """The code of a program; None if it doesn't compile. Tells the worker either way, for the tests to come."""
    try:
        code = compile(source, "solution.py", "exec", dont_inherit=True)
    except BaseException as exc:
        write_all(READY_FD, REFUSED + format_exception(exc, source).encode("utf-8", "backslashreplace"))
        return None
    write_all(READY_FD, COMPILED + marshal.dumps(code) + END)
    return code


def run_program(marshalled, source, data, output_bytes, format_exception):
    """Runs a program as `python solution.py` would; compiles it unless its code is given. Returns the exit code."""
    code = marshal.loads(marshalled) if marshalled else compile_program(source, format_exception)
    if code is None:
        return 1
    os.close(READY_FD)
    lower(resource.RLIMIT_FSIZE, output_bytes + 1)
    main = type(sys)("__main__")
    main.__dict__.update(__builtins__=builtins, __file__="solution.py")
    sys.modules["__main__"] = main
    sys.modules["random"].seed(zlib.crc32(data))  # differs by input, yet the same in every worker
    exit_code = 1
    try:
        exec(code, main.__dict__)
        exit_code = 0
    except SystemExit as exc:
        exit_code = code_of(exc)
    except MemoryError:
        write_all(REPORT_FD, OUT_OF_MEMORY + b"MemoryError")
    except BaseException as exc:
        write_all(REPORT_FD, EXCEPTION + format_exception(exc, source).encode("utf-8", "backslashreplace"))
    return finish(main, exit_code)


def code_of(exc):
    """What `sys.exit(...)` means, as CPython has it."""
    if exc.code is None:
        return 0
    if isinstance(exc.code, int):
        return exc.code & 0xFF
    print(exc.code, file=sys.stderr)
    return 1


def finish(main, exit_code):
    """What programs rely on at the interpreter's end: threads joined, exit functions run, buffers flushed (twice)."""
    try:
        sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
        flush(sys.stdout, sys.stderr)
        streams = sys.__stdout__, sys.__stderr__
        main.__dict__.clear()  # files that the program opened on descriptor 1 are flushed when they go
        gc.collect()
        flush(*streams)
    except MemoryError:
        write_all(REPORT_FD, OUT_OF_MEMORY + b"MemoryError")
        return 1
    except BaseException:
        return 120  # CPython's code for a failed flush
    return exit_code


def flush(*streams):
    """Flushes what there is to flush."""
    for stream in streams:
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()


def write_all(fd, data):
    """Writes every byte of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
