"""`python -m tests.helpers.as_user UID COMMAND...`: root runs a command as an ordinary user.

What the command needs may lie in a folder that is root's own (an interpreter under /root): in a mount namespace of its
own, such a folder is covered by one that anyone may search, with just the needed parts in their places.
"""

import os
import pathlib
import sys

from rlef_jax.execution import kernel
from rlef_jax.execution.interpreter import find_python

STAGE = "/mnt"


def main(uid, command):
    needed = {sys.prefix, sys.base_prefix, str(pathlib.Path(find_python("3.10").path).parent.parent), os.getcwd()}
    hidden = {top: [p for p in needed if p.startswith(top + "/")] for top in filter(None, map(closed_folder, needed))}
    os.unshare(os.CLONE_NEWNS)
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    for top, paths in hidden.items():
        kernel.mount("stage", STAGE, "tmpfs", 0, "mode=755")
        for i, path in enumerate(paths):
            os.mkdir(f"{STAGE}/{i}")
            kernel.bind(path, f"{STAGE}/{i}")
        kernel.mount("cover", top, "tmpfs", 0, "mode=755")
        for i, path in enumerate(paths):
            os.makedirs(path, exist_ok=True)
            kernel.bind(f"{STAGE}/{i}", path)
    os.chdir(os.getcwd())  # its own place may have been covered
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    os.execvpe(command[0], command, {**os.environ, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"})


def closed_folder(path):
    """The outermost folder on the way to `path` that others may not search."""
    for folder in reversed(pathlib.Path(path).parents):
        if not folder.stat().st_mode & 0o001:
            return str(folder)
    return None


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
