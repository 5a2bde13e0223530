# mypy: allow-untyped-defs
"""Drops rights and sets resource limits of a program's process before any of the program's code runs.

Runs in the worker, under the judge's Python (3.8+).
"""

import os
import resource
import signal

OPEN_FILES = 512
INTERPRETER_BYTES = 64 << 20  # assumed address space of the interpreter if it can't be read
# Address space allowed beyond the memory limit: memory that is reserved but never touched, such as thread stacks, isn't
# used. Without a control group, which counts touched memory, a program can exceed its limit by the second value.
RESERVED_BYTES, RESERVED_UNCOUNTED_BYTES = 1 << 40, 1 << 30


def confine(settings, modules, request):
    """Gives up every right that a program must not have; the processes of its tests inherit this."""
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
    """Sets resource limits that tests inherit. Those that would hinder this process are set per test (`child`)."""
    reserved = RESERVED_BYTES if settings["cgroup"] else RESERVED_UNCOUNTED_BYTES
    wanted = {
        resource.RLIMIT_AS: own_address_space() + request.memory + reserved,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if settings["namespaces"]:  # without namespaces it would count all processes of the user
        wanted[resource.RLIMIT_NPROC] = request.processes + settings["own_processes"]
    for name, value in wanted.items():
        lower(name, value)


def own_address_space():
    """Address space of the interpreter in bytes, which is added to the program's limit."""
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
