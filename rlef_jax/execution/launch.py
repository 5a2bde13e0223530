# mypy: allow-untyped-defs
"""Builds a worker's sandbox, then becomes the worker (or, with namespaces, waits for it).

The pool runs this file as a script under our Python, without importing the package. Descriptors come as arguments,
settings in a memory file. What it does depends on the level of isolation (`isolation.py`).
"""

import marshal
import os
import resource
import signal
import sys

# Messages: to the pool, a user namespace waits for its id mapping; from the pool, continue.
WAITS_FOR_MAPPING, GO = b"U", b"g"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONINTMAXSTRDIGITS": "0",  # no limit: big numbers are common in contests, and time is limited anyway
    "MALLOC_ARENA_MAX": "1",  # an arena per thread would use up the program's address space
    "OMP_NUM_THREADS": "1",  # for NumPy's libraries, if the interpreter has NumPy
}
# Deep recursion is common in contest solutions. Set before exec, when the kernel lays out memory.
STACK_BYTES = 256 << 20
BOOT = "import os, sys, marshal; sys.path.pop(0); b = marshal.loads(os.pread(11, os.fstat(11).st_size, 0)); "
BOOT += "os.close(11); m = type(sys)('protocol'); sys.modules['protocol'] = m; "
BOOT += "exec(compile(b['worker'], 'worker.py', 'exec'), m.__dict__); m.main(b)"
CONTROL_FD, PAYLOAD_FD, NAMESPACE_FD, OOM_FD, BUNDLE_FD = 4, 5, 6, 8, 11
# The new root is built in the first of these folders that holds none of the files to bind.
ROOTS = ("/mnt", "/media", "/srv", "/opt", "/var", "/tmp")


def main():
    """Waits for the pool's message, builds the sandbox, and becomes the worker in it."""
    control, payload, bundle, oom = (int(a) for a in sys.argv[1:5])
    settings = marshal.loads(os.pread(bundle, os.fstat(bundle).st_size, 0))
    kernel = type(sys)("kernel")
    exec(compile(settings["sources"]["kernel"], "kernel.py", "exec"), kernel.__dict__)
    worker_settings = settings["settings"]
    descriptors = {CONTROL_FD: control, PAYLOAD_FD: payload, BUNDLE_FD: bundle}
    if worker_settings["cgroup"]:
        descriptors[OOM_FD] = oom
    if os.read(control, 1) != GO:  # by then the pool has moved this process into its cgroup
        return
    if worker_settings["namespaces"]:
        root = enter_namespaces(kernel, settings["sandbox"], control)
        descriptors[NAMESPACE_FD] = become_init(kernel, root)
    else:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.chdir("/")
    raise_stack_limit()
    place_descriptors(descriptors)
    os.execve(settings["sandbox"]["python"], [settings["sandbox"]["python"], "-S", "-s", "-B", "-c", BOOT], ENVIRONMENT)


def enter_namespaces(kernel, sandbox, control):
    """Enters new namespaces and builds a new root with this process's own rights. Returns the root's path."""
    sources = (*sandbox["binds"], *sandbox["packages"].values())
    root = next(r for r in ROOTS if os.path.isdir(r) and not any(p.startswith(r + "/") for p in sources))
    own_ids = os.getuid(), os.getgid()
    if sandbox["mapped_by_pool"]:
        kernel.call("unshare", kernel.CLONE_NEWNS)
        build_root(kernel, root, sandbox)
    kernel.call("unshare", kernel.NAMESPACES)
    if sandbox["mapped_by_pool"]:
        os.write(control, WAITS_FOR_MAPPING)
        if os.read(control, 1) != GO:
            os._exit(1)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    else:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {own_ids[0]} 1"), ("gid_map", f"0 {own_ids[1]} 1")):
            with open("/proc/self/" + name, "w") as f:
                f.write(text)
        build_root(kernel, root, sandbox)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    return root


def build_root(kernel, root, sandbox):
    """Builds a read-only file system with the interpreter's files and a few devices at the path `root`."""
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("root", root, "tmpfs", kernel.MS_NOSUID, "size=1m,mode=755")
    for folder in ("proc", "box", "box/cwd", "dev"):
        os.mkdir(f"{root}/{folder}", 0o755)
    for link, target in sandbox["links"].items():
        os.makedirs(os.path.dirname(root + link), exist_ok=True)
        os.symlink(target, root + link)
    for path in sandbox["binds"]:
        mount_point = root + path
        if os.path.isdir(path):
            os.makedirs(mount_point, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(mount_point), exist_ok=True)
            os.close(os.open(mount_point, os.O_CREAT | os.O_WRONLY, 0o644))
        kernel.bind(path, mount_point)
    for mount_point, path in sandbox["packages"].items():
        os.makedirs(root + mount_point, exist_ok=True)
        kernel.bind(path, root + mount_point)
    kernel.restrict_mounts(root, kernel.ATTR_READ_ONLY | kernel.ATTR_NO_SUID)


def become_init(kernel, root):
    """Forks process 1 of the new process namespace, which continues in the new root; the old process waits for it.

    Returns, in process 1, a descriptor of the namespace.
    """
    child = os.fork()
    if child:
        os.closerange(3, 256)
        _, status = os.waitpid(child, 0)
        os._exit(1 if status else 0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
    kernel.mount(root, root, "", kernel.MS_BIND | kernel.MS_REC)  # a mount that this user namespace may move
    for options in ("hidepid=4,subset=pid", "hidepid=2,subset=pid", "hidepid=2"):  # 2 hides nothing from group 0
        try:
            flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
            kernel.mount("proc", root + "/proc", "proc", flags, options)
            break
        except OSError:  # an older kernel, or a container that hides parts of /proc: then the sandbox has no /proc
            continue
    os.chdir(root)
    kernel.call("pivot_root", b".", b".")
    kernel.umount(".")
    os.chdir("/")
    return namespace


def raise_stack_limit():
    """Raises the stack limit as far as allowed, up to STACK_BYTES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    limit = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    if soft == resource.RLIM_INFINITY or soft < limit:
        resource.setrlimit(resource.RLIMIT_STACK, (limit, hard))


def place_descriptors(descriptors):
    """Moves each descriptor to its number, 0 to 2 to /dev/null, and closes all others."""
    high = {number: os.dup2(fd, 100 + number) for number, fd in descriptors.items()}
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, 100)
    for number, fd in high.items():
        os.dup2(fd, number)
    os.closerange(100, 256)


if __name__ == "__main__":
    try:
        main()
    except OSError as exc:
        os.write(int(sys.argv[1]), b"!" + str(exc).encode())
        sys.exit(1)
