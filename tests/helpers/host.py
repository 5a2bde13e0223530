"""What tests of the executor see on the host while programs run: processes, by name and by descent."""

import contextlib
import os
import pathlib
import time


def processes_called(name):
    """Ids of the host's processes and threads of that name."""
    pids = []
    for comm in pathlib.Path("/proc").glob("[0-9]*/task/[0-9]*/comm"):
        try:
            if comm.read_text().strip() == name:
                pids.append(int(comm.parts[2]))
        except OSError:
            continue
    return pids


def wait_until(condition, seconds=30.0):
    """Waits for a condition to come true, and says whether it has."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def call_itself(name):
    """Lines at a program's start by which the host finds it (its files and network reach nobody)."""
    return f"import ctypes; ctypes.CDLL(None).prctl(15, {name!r}.encode())\n"


def is_running(name, seconds=30.0):
    """Whether a process of that name comes up."""
    return wait_until(lambda: processes_called(name), seconds)


def descendants():
    """Process ids of everything below this process."""
    parents = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    below, new = set(), {os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new}
        below |= new
    return below


def tree(pids):
    """The processes and all that descend from them."""
    reached, todo = set(), list(pids)
    while todo:
        pid = todo.pop()
        reached.add(pid)
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                todo += [int(child) for child in task.read_text().split()]
    return reached
