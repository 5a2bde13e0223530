# mypy: allow-untyped-defs
"""System calls that Python 3.10's `os` lacks, through the C library but without importing the heavy `ctypes` package.

Runs in the worker under the judge's Python (3.8+) and in the launcher under ours; imports nothing from rlef_jax.
Every function raises OSError if its system call fails.
"""

import _ctypes
import os
import struct

_NUMBERS = {  # x86-64, arm64
    "setns": (308, 268),
    "unshare": (272, 97),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "mount_setattr": (442, 442),
    "prctl": (157, 167),
    "capset": (126, 91),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
NAMESPACES = CLONE_NEWNS | CLONE_NEWUSER | CLONE_NEWPID | 0x4000000 | 0x8000000 | 0x40000000  # and uts, ipc, net
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
ATTR_READ_ONLY, ATTR_NO_SUID = 1, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38

# Landlock's file rights: those for reading, and all rights known since a version of the interface.
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, list a folder
_HANDLED = ((5, (1 << 16) - 1), (3, (1 << 15) - 1), (2, (1 << 14) - 1), (1, (1 << 13) - 1))
_FILE_RIGHTS = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14  # rights allowed in a rule for a file

_functions: dict = {}  # of the C library, by name


def _function(name):
    """A function of the C library that takes ints of 32 bits, bytes and None, and returns a long."""
    if name not in _functions:
        word = type("word", (_ctypes._SimpleCData,), {"_type_": "l"})
        flags = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
        function = type("function", (_ctypes.CFuncPtr,), {"_flags_": flags, "_restype_": word})
        library = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # the process itself
        _functions[name] = function(_ctypes.dlsym(library, name))
    return _functions[name]


def give_back_memory():
    """Returns unused memory of the allocator to the kernel, if the C library can, so that forks copy less."""
    try:
        _function("malloc_trim")(0)
    except OSError:  # not the GNU C library
        pass


def call(name, *args):
    """A raw system call by name; takes ints of 32 bits, bytes (as pointers) and None (as a null pointer)."""
    column = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine)
    if column is None:
        raise OSError(38, f"{name}: its number on this machine is not known")
    result = _function("syscall")(_NUMBERS[name][column], *args)
    if result < 0:
        code = _ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def mount(source, target, kind, flags=0, data=""):
    """mount(2)."""
    call("mount", source.encode(), target.encode(), kind.encode(), flags, data.encode())


def bind(source, target):
    """Bind-mounts `source` at `target`, without the mounts below it."""
    mount(source, target, "", MS_BIND)


def umount(target):
    """Detaches the mount at `target`."""
    call("umount2", target.encode(), 2)


def restrict_mounts(target, attributes):
    """Sets attributes (ATTR_...) on all mounts from `target` down."""
    call("mount_setattr", -100, target.encode(), 0x8000, struct.pack("=QQQQ", attributes, 0, 0, 0), 32)


def prctl(option, *args):
    """prctl(2)."""
    call("prctl", option, *args, *[0] * (4 - len(args)))


def no_new_privileges():
    """Sets no_new_privs: exec can no longer add rights. Seccomp and Landlock require this without root."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities():
    """Drops every capability, also from the bounding set, so that user 0 of a namespace has no special rights."""
    prctl(47, 4)  # PR_CAP_AMBIENT, clear all
    for capability in range(64):
        try:
            prctl(24, capability)  # PR_CAPBSET_DROP
        except OSError:  # no such capability, or not permitted: then no_new_privs prevents gaining any
            break
    call("capset", struct.pack("=Ii", 0x20080522, 0), bytes(24))


def install_filter(program):
    """Installs a seccomp filter (`struct sock_filter[]` as bytes) for this process and its future children.

    Call `no_new_privileges` first.
    """
    address = id(program) + bytes.__basicsize__ - 1  # where CPython keeps the bytes of a bytes object
    prctl(PR_SET_SECCOMP, 2, struct.pack("=H6xQ", len(program) // 8, address))


def landlock_version():
    """Version of the kernel's Landlock interface. Raises OSError if it has none."""
    return call("landlock_create_ruleset", None, 0, 1)


def landlock_ruleset(readable, writable, files_only):
    """A descriptor of a Landlock rule set: only these paths, no TCP, no signals or abstract sockets to other processes.

    `files_only` are single files (device nodes) that may be read and written.
    """
    version = landlock_version()
    handled = next(rights for since, rights in _HANDLED if version >= since)
    attributes = struct.pack("=QQQ", handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = call("landlock_create_ruleset", attributes, size, 0)
    paths = [(path, _READ) for path in readable] + [(path, handled) for path in writable]
    for path, rights in paths + [(path, _FILE_RIGHTS) for path in files_only]:
        if not os.path.exists(path):
            continue
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            rights &= _FILE_RIGHTS
        call("landlock_add_rule", ruleset, 1, struct.pack("=Qi", rights & handled, fd), 0)
        os.close(fd)
    return ruleset


def landlock_restrict(ruleset):
    """Applies a rule set to this process and its future children. Call `no_new_privileges` first."""
    call("landlock_restrict_self", ruleset, 0)
