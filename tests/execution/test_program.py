"""Outcomes of programs: every status, the interpreter's behaviour, and some hostile programs."""

import dataclasses

import pytest

from rlef_jax.execution.isolation import Level
from rlef_jax.types import Limits, Status

FAST = Limits(wall_s=0.5, memory_bytes=64 << 20, output_bytes=1 << 16, processes=8)

STATUSES = [
    ("wrong", "print(8)", Status.WRONG_ANSWER),
    ("silent", "", Status.WRONG_ANSWER),
    ("exception", "print(7)\n1/0", Status.RUNTIME_ERROR),
    ("nonzero exit", "print(7)\nimport sys; sys.exit(3)", Status.RUNTIME_ERROR),
    ("exit with a message", "print(7)\nexit('no')", Status.RUNTIME_ERROR),
    ("segfault after the answer", "print(7, flush=True)\nimport os; os.kill(os.getpid(), 11)", Status.RUNTIME_ERROR),
    ("keyboard interrupt", "print(7)\nraise KeyboardInterrupt", Status.RUNTIME_ERROR),
    ("no second line", "input(); input()", Status.RUNTIME_ERROR),
    ("loop", "while True: pass", Status.TIME_LIMIT),
    ("sleep", "import time; time.sleep(60)", Status.TIME_LIMIT),
    (
        "deaf to signals",
        "import signal\nfor s in (2, 15, 24): signal.signal(s, signal.SIG_IGN)\nwhile 1: pass",
        Status.TIME_LIMIT,
    ),
    ("big", "x = bytearray(1 << 30)", Status.MEMORY_LIMIT),
    ("growing", "x = []\nwhile True: x.append(bytearray(1 << 22))", Status.MEMORY_LIMIT),
    ("talkative", "while True: print('x' * 1000)", Status.OUTPUT_LIMIT),
    (
        "talkative and deaf",
        "import signal\nsignal.signal(25, signal.SIG_IGN)\nprint('7' + ' ' * 100_000)",
        Status.OUTPUT_LIMIT,
    ),
    ("does not compile", "print(7", Status.SYNTAX_ERROR),
    ("null byte", "print(7)\0", Status.SYNTAX_ERROR),
    ("lone surrogate", "print(7)\n'\ud800'\nx = '\udc80", Status.SYNTAX_ERROR),
    ("breaks the parser", "(" * 5000 + ")" * 5000, Status.SYNTAX_ERROR),
    ("too deep to compile", "-" * 200_000 + "1", Status.SYNTAX_ERROR),
    ("fork bomb", "import os\nwhile True: os.fork()", Status.RUNTIME_ERROR),
]


@pytest.mark.parametrize(("program", "status"), [s[1:] for s in STATUSES], ids=[s[0] for s in STATUSES])
def test_status(run, program, status):
    wall_s = FAST.wall_s if status is Status.TIME_LIMIT else 30.0  # must also hold on a busy machine
    (result,) = run(program, ("4\n", "7\n"), limits=dataclasses.replace(FAST, wall_s=wall_s))
    assert result.status is status, result
    (after,) = run("print(7)", ("4\n", "7\n"))  # and the worker still works
    assert after.status is Status.PASSED


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("import os; os.kill(os.getpid(), 11)", "Killed by SIGSEGV."),
        ("import sys; print('oops', file=sys.stderr); sys.exit(3)", "oops\nExited with code 3."),
        ("exit('no')", "no\nExited with code 1."),
    ],
)
def test_failures_without_an_exception_say_what_happened(run, program, text):
    (result,) = run(program)
    assert result.error == text


PASSING = {
    "sum": "print(sum(map(int, input().split())))",
    "fstat": "import os, stat\ns = os.fstat(0)\nassert stat.S_ISREG(s.st_mode) and s.st_size == 4\nprint(7)",
    "os.read": "import os\nprint(sum(map(int, os.read(0, os.fstat(0).st_size).split())))",
    "open(0)": "print(sum(map(int, open(0).read().split())))",
    "dev stdin": "print(sum(map(int, open('/dev/stdin').read().split())))",
    "seek": "import sys\nsys.stdin.readline(); sys.stdin.seek(0)\nprint(sum(map(int, input().split())))",
    "main": "if __name__ == '__main__': print(7)",
    "main module": "import sys\nx = 7\nprint(sys.modules['__main__'].x)",
    "name": "import sys\nassert sys.argv == ['solution.py'] == [__file__]\nprint(7)",
    "exit": "print(7)\nexit()",
    "sys.exit": "import sys\nprint(7)\nsys.exit(0)",
    "thread": "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print(7))).start()",
    "atexit": "import atexit\natexit.register(print, 7)",
    "unclosed file": "f = open(1, 'w')\nf.write('7')",
    "rebound stdout": (
        "import sys, io\nclass W(io.StringIO):\n"
        "    def flush(self): sys.__stdout__.write(self.getvalue()); self.seek(0); self.truncate()\n"
        "sys.stdout = W()\nprint(7)"
    ),
    "os._exit": "import os\nprint(7, flush=True)\nos._exit(0)",
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\n"
        "assert f(50_000) == 50_000\nprint(7)"
    ),
    "threads": (
        "import threading\nts = [threading.Thread(target=int) for _ in range(4)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\nprint(7)"
    ),
    "empty folder": "import os\nassert os.listdir('.') == []\nopen('x', 'w').write('y')\nprint(7)",
    "empty folder again": "import os\nassert os.listdir('.') == []\nprint(7)",
    "no descriptors": "import os\nfds = os.listdir('/proc/self/fd')\nassert set(fds) <= set('01234'), fds\nprint(7)",
    "no judge to import": "try:\n    import worker\nexcept ImportError:\n    print(7)",
}


NEED_FILES = {"empty folder", "empty folder again", "no descriptors"}  # a folder to write, or /proc


@pytest.mark.parametrize("name", PASSING)
def test_programs_run_as_under_plain_python(pool, run, name):
    if pool.level is Level.PROCESS and name in NEED_FILES:
        pytest.skip("nothing can be written at this level, and /proc is not shown")
    for result in run(PASSING[name], ("3 4\n", "7\n"), ("3 4\n", "7\n")):
        assert result.status is Status.PASSED, result


def test_programs_do_not_see_each_other(run):
    run("import builtins, sys, math\nbuiltins.print = None\nsys.x = 1\nmath.pi = 3")
    (result,) = run("import sys, math\nprint(hasattr(sys, 'x'), math.pi > 3)", ("", "False True"))
    assert result.status is Status.PASSED, result


def test_sets_and_random_numbers_come_out_the_same_in_every_worker(run):
    program = "import random\nprint(random.random(), {'a', 'b', 'c', 'd', 'e', 'f'})"
    outputs = {run(program, ("3", ""))[0].stdout for _ in range(6)}
    assert len(outputs) == 1
    assert run(program, ("4", ""))[0].stdout not in outputs  # seeded by the input


SHARED_OUT = """
import os, time
r, w = os.pipe()
children = []
for _ in range(4):
    children.append(os.fork())
    if children[-1] == 0:
        os.close(r)
        x = bytearray(60 << 20)
        x[::4096] = b'1' * len(x[::4096])
        os.write(w, b'1')
        os.close(w)
        time.sleep(30)
        os._exit(0)
os.close(w)
while os.read(r, 1): pass  # each has all of its memory, or is dead
print(sum(os.waitpid(child, os.WNOHANG)[0] == 0 for child in children))
"""


def test_memory_is_counted_for_the_program_as_a_whole(pool, run):
    if pool.level is not Level.FULL:
        pytest.skip("no cgroup here: a program is a single process, whose own limit is the program's")
    (result,) = run(SHARED_OUT, ("", "4"), limits=dataclasses.replace(FAST, memory_bytes=128 << 20, wall_s=60.0))
    assert result.status is Status.MEMORY_LIMIT and result.stdout != "4\n"  # that are alive at the same time


def test_a_program_too_long_for_its_memory_is_no_failure_of_the_judge(pool, run):
    limits = dataclasses.replace(FAST, memory_bytes=32 << 20, wall_s=30.0)
    retries = pool.stats()["retries"]
    for size in (1 << 22, 1 << 23, 1 << 24, 1 << 25):
        (result,) = run(f"x = '{'y' * size}'\nz = b'{'y' * size}'", limits=limits)
        assert result.status in (Status.PASSED, Status.SYNTAX_ERROR, Status.MEMORY_LIMIT)
    assert pool.stats()["retries"] == retries


def test_hostile_reports_change_no_failure_into_a_pass_or_an_infrastructure_error(run):
    for text in ("X", "M", "E", "-", ""):
        (result,) = run(f"import os\nos.write(3, {text!r}.encode())\nprint(8)\nos._exit(1)", ("", "7"))
        assert result.status in (Status.RUNTIME_ERROR, Status.MEMORY_LIMIT)


def test_no_expected_output_in_the_worker(run):
    secret = "expected-7391"
    program = (
        "import gc, sys\nseen = []\nf = sys._getframe()\nwhile f: seen.append(repr(f.f_locals)); f = f.f_back\n"
        "seen += [repr(o) for o in gc.get_objects(0) if isinstance(o, (dict, list, tuple))][:1000]\n"
        "secret = ''.join(['expected', '-7391'])\nprint('seen' if secret in ''.join(seen[:-1]) else 'clean')"
    )
    (result,) = run(program, ("", secret))
    assert result.stdout.strip() == "clean"


def test_large_input_and_output(run):
    data = " ".join(map(str, range(200_000)))
    limits = dataclasses.replace(FAST, output_bytes=4 << 20, wall_s=30.0)
    (result,) = run("print(input())", (data, data), limits=limits)
    assert result.status is Status.PASSED
    assert result.stdout.endswith(f"...[{len(data) + 1 - 20_000} characters cut]")


def test_measurements(run):
    (result,) = run(
        "x = bytearray(64 << 20)\nx[::4096] = b'1' * len(x[::4096])\nimport time; time.sleep(0.2)", ("", "")
    )
    assert result.status is Status.PASSED
    assert result.exit_code == 0
    assert result.memory_bytes > 64 << 20
    assert 0.2 <= result.wall_s < 30
    assert 0 < result.cpu_s < 30
