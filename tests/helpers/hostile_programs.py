"""Programs that attack the judge, read from `hostile_programs.txt`, which says what its parts mean.

`ATTEMPTS` (name -> program) pass, printing `safe`, if nothing that they ask for is granted; `BOMBS` and `LIARS` (name
-> program, allowed statuses) must fail.
"""

import pathlib
import re

from rlef_jax.types import Status

ANY = frozenset(s for s in Status if s not in (Status.PASSED, Status.INFRA_ERROR, Status.NO_CODE))
_LIBC = "import ctypes, os, sys\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_HEADER = re.compile(r"===== (attempt|polite|bomb|liar): (.+?)(?: -> (.+))?\n")
_TRY_EACH = """
class Refused(Exception): pass
def need(result):
    if result is None or result == -1: raise Refused
    return result
for f in FUNCTIONS:
    try: f()
    except BaseException: continue
    print('BREACH', f.__name__)
print('safe')
"""


def attempt(text):
    """A program that tries each line of `text` (after a line `---`, if there is one: then what is before is setup)."""
    setup, _, body = text.rpartition("---\n")
    lines = body.strip().split("\n")
    functions = "".join(f"def line_{i}():\n    {line}\n" for i, line in enumerate(lines, 1))
    names = ", ".join(f"line_{i}" for i in range(1, len(lines) + 1))
    return _LIBC + setup + functions + _TRY_EACH.replace("FUNCTIONS", f"({names},)")


def read():
    """Kind and name of each program -> its text and the statuses allowed."""
    _, *parts = _HEADER.split((pathlib.Path(__file__).parent / "hostile_programs.txt").read_text())
    for kind, name, statuses, text in zip(parts[::4], parts[1::4], parts[2::4], parts[3::4]):
        allowed = {Status.PASSED}
        if statuses:
            allowed = ANY if statuses == "any failure" else frozenset(map(Status, statuses.split()))
        program = attempt(text) if kind == "attempt" else text.replace("LIBC\n", _LIBC).rstrip("\n") + "\n"
        yield kind, name, program, allowed


_ALL = list(read())
ATTEMPTS = {name: program for kind, name, program, _ in _ALL if kind in ("attempt", "polite")}
BOMBS = {name: (program, allowed) for kind, name, program, allowed in _ALL if kind == "bomb"}
BOMBS |= {  # too long to be written out
    "too deep for the compiler": ("(" * 5000 + ")" * 5000, frozenset({Status.SYNTAX_ERROR})),
    "crashes the compiler": ("-" * 200_000 + "1", frozenset({Status.SYNTAX_ERROR})),
    "a hundred thousand names": ("\n".join(f"a{i} = {i}" for i in range(100_000)) + "\nwhile True: pass", ANY),
}
LIARS = {name: (program, allowed) for kind, name, program, allowed in _ALL if kind == "liar"}
