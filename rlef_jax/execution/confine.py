# mypy: allow-untyped-defs
"""What a program's process gives up before it runs anything of the program's: rights, and resources beyond its limits.

Runs in the worker, under the judge's Python (3.8+).
"""

import os
import resource
import signal

OPEN_FILES = 512
INTERPRETER_BYTES = 64 << 20  # address space, where it can't be read
# Address space beyond a program's memory: what is reserved and never touched, as large thread stacks, is no memory
# used. Without a control group, which counts what is touched, a program may exceed its limit by so much.
RESERVED_BYTES, RESERVED_UNCOUNTED_BYTES = 1 << 40, 1 << 30


def confine(settings, modules, request):
    """Gives up every right that a program must not have; its tests inherit the rest."""
    kernel, worker = modules["kernel"], modules["protocol"]
    if settings["box_bytes"]:
        os.chdir(worker.BOX)
    set_limits(settings, request)
    if settings["oom_score"]:
        with open("/proc/self/oom_score_adj", "w") as f:
            f.write(str(settings["oom_score"]))
    if settings["program_uid"] is not None:
        os.setresgid(*[settings["program_uid"]] * 3)
        os.setresuid(*[settings["program_uid"]] * 3)
    kernel.drop_capabilities()
    kernel.no_new_privileges()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # no tracing, and /proc/PID belongs to no program
    if not settings["namespaces"]:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if settings["landlock"]:
        kernel.landlock_restrict(worker.LANDLOCK_FD)
    if settings["filter"]:
        kernel.install_filter(settings["filter"])


def set_limits(settings, request):
    """Resource limits that tests inherit; those that would hinder this process are set in each test's own."""
    reserved = RESERVED_BYTES if settings["cgroup"] else RESERVED_UNCOUNTED_BYTES
    wanted = {
        resource.RLIMIT_AS: own_address_space() + request.memory + reserved,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if settings["namespaces"]:  # elsewhere the limit counts all processes of the user
        wanted[resource.RLIMIT_NPROC] = request.processes + settings["own_processes"]
    for name, value in wanted.items():
        lower(name, value)


def own_address_space():
    """Bytes of the interpreter, which come on top of the program's."""
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[0]) * resource.getpagesize()
    except OSError:  # no /proc here
        return INTERPRETER_BYTES


def lower(name, value):
    """Sets a resource's soft and hard limit, as far as the hard one allows."""
    hard = resource.getrlimit(name)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(name, (value, value))
