# mypy: allow-untyped-defs
"""Waits for the pool's process to go and removes the control groups that it left behind. A script of its own.

`python janitor.py FD START`: FD is a pipe whose other end the pool alone holds; lines on it name folders, `+` before
one that was made and `-` before one that was removed.
"""

import os
import signal
import sys
import time


def main():
    """Reads until the pool is gone, then removes what it left; gives up after half a minute."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it goes when the pool is gone, no sooner
    folders: set[str] = set()
    with open(int(sys.argv[1])) as lines:
        for line in lines:
            (folders.add if line[0] == "+" else folders.discard)(line[1:].rstrip("\n"))
    give_up = time.monotonic() + 30
    while folders and time.monotonic() < give_up:
        for folder in tuple(folders):
            remove(folder, folders)
        time.sleep(0.02)


def remove(folder, folders):
    """Kills what is in a group and removes it, if that is possible yet."""
    try:
        with open(folder + "/cgroup.procs") as f:
            for pid in f.read().split():
                os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        folders.discard(folder)
    except OSError:
        return
    folders.discard(folder)


if __name__ == "__main__":
    main()
