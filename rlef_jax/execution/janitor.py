# mypy: allow-untyped-defs
"""Waits until the pool's process ends, then removes the control groups that it left. Runs as a separate script.

`python janitor.py FD`: FD is a pipe whose other end only the pool holds. Its lines name folders: `+FOLDER` was created,
`-FOLDER` was removed.
"""

import os
import signal
import sys
import time


def main():
    """Reads until the pool's process ends, then removes what it left; gives up after 30 seconds."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # must outlive the pool
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
    """Kills a group's processes and tries to remove it; on success also from `folders`."""
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
