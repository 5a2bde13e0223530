"""System call filters (seccomp) as BPF programs: the system calls that a candidate program may make. Pure.

The filter is an allowlist: all other calls fail with EPERM. The worker installs these bytes without any library
(`kernel.py`).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence

# Name, number on x86-64, number on arm64 (`-`: the machine has no such call). From the kernel's unistd.h.
_TABLE = """
access 21 -; alarm 37 -; arch_prctl 158 -; brk 12 214; chdir 80 49; chmod 90 -; clock_getres 229 114;
clock_gettime 228 113; clock_nanosleep 230 115; clone 56 220; clone3 435 435; close 3 57; close_range 436 436;
copy_file_range 326 285; creat 85 -; dup 32 23; dup2 33 -; dup3 292 24; epoll_create 213 -; epoll_create1 291
20; epoll_ctl 233 21; epoll_pwait 281 22; epoll_pwait2 441 441; epoll_wait 232 -; eventfd 284 -; eventfd2 290
19; exit 60 93; exit_group 231 94; faccessat 269 48; faccessat2 439 439; fadvise64 221 223; fallocate 285 47;
fchdir 81 50; fchmod 91 52; fchmodat 268 53; fcntl 72 25; fdatasync 75 83; flock 73 32; fork 57 -; fstat 5 80;
fstatfs 138 44; fsync 74 82; ftruncate 77 46; futex 202 98; futimesat 261 -; get_robust_list 274 100; getcpu
309 168; getcwd 79 17; getdents64 217 61; getegid 108 177; geteuid 107 175; getgid 104 176; getgroups 115 158;
getitimer 36 102; getpeername 52 205; getpgid 121 155; getpgrp 111 -; getpid 39 172; getppid 110 173;
getpriority 140 141; getrandom 318 278; getresgid 120 150; getresuid 118 148; getrlimit 97 163; getrusage 98
165; getsid 124 156; getsockname 51 204; getsockopt 55 209; gettid 186 178; gettimeofday 96 169; getuid 102
174; ioctl 16 29; kill 62 129; link 86 -; linkat 265 37; lseek 8 62; lstat 6 -; madvise 28 233; membarrier 324
283; memfd_create 319 279; mincore 27 232; mkdir 83 -; mkdirat 258 34; mmap 9 222; mprotect 10 226; mremap 25
216; msync 26 227; munmap 11 215; nanosleep 35 101; newfstatat 262 79; open 2 -; openat 257 56; pause 34 -;
pidfd_open 434 434; pipe 22 -; pipe2 293 59; poll 7 -; ppoll 271 73; prctl 157 167; pread64 17 67; preadv 295
69; preadv2 327 286; prlimit64 302 261; pselect6 270 72; pwrite64 18 68; pwritev 296 70; pwritev2 328 287;
read 0 63; readlink 89 -; readlinkat 267 78; readv 19 65; recvfrom 45 207; recvmsg 47 212; rename 82 -;
renameat 264 -; renameat2 316 276; restart_syscall 219 128; rmdir 84 -; rseq 334 293; rt_sigaction 13 134;
rt_sigpending 127 136; rt_sigprocmask 14 135; rt_sigreturn 15 139; rt_sigsuspend 130 133; rt_sigtimedwait 128
137; sched_get_priority_max 146 125; sched_get_priority_min 147 126; sched_getaffinity 204 123; sched_getparam
143 121; sched_getscheduler 145 120; sched_yield 24 124; select 23 -; sendfile 40 71; sendmsg 46 211; sendto
44 206; set_robust_list 273 99; set_tid_address 218 96; setitimer 38 103; setpgid 109 154; setsid 112 157;
setsockopt 54 208; shutdown 48 210; sigaltstack 131 132; socketpair 53 199; splice 275 76; stat 4 -; statfs
137 43; statx 332 291; symlink 88 -; symlinkat 266 36; sysinfo 99 179; tee 276 77; tgkill 234 131; time 201 -;
timer_create 222 107; timer_delete 226 111; timer_getoverrun 225 109; timer_gettime 224 108; timer_settime 223
110; timerfd_create 283 85; timerfd_gettime 287 87; timerfd_settime 286 86; times 100 153; tkill 200 130;
truncate 76 45; umask 95 166; uname 63 160; unlink 87 -; unlinkat 263 35; utime 132 -; utimensat 280 88;
utimes 235 -; vfork 58 -; wait4 61 260; waitid 247 95; write 1 64; writev 20 66
"""
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # AUDIT_ARCH_*, column of the table
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
OWN_PID = 0x5F504944  # placeholder in a filter for the id of the process that installs it
_ARGUMENTS = 16  # offset of the first argument in struct seccomp_data; an argument has 8 bytes, low word first
_NAMESPACES = 0x7E020080  # CLONE_NEW*: mount, cgroup, uts, ipc, user, pid, net; and time
_THREAD = 0x00010000  # CLONE_THREAD
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, window size, FIONREAD, FIONBIO, (no) close-on-exec
_PRCTLS = (3, 15, 16, 22)  # get dumpable, set and get a thread's name, add a filter (which can only forbid more)
_SET_PARENT_DEATH_SIGNAL = 1
_FCNTLS = tuple(n for n in range(16) if n not in (8, 15)) + (1030, 1032, 1034)  # not F_SETOWN(_EX), F_SETPIPE_SZ

type _Code = list[tuple[int, int, int, int]]  # instructions: operation, jump if true, if false, value


class UnknownMachineError(RuntimeError):
    """Raised if there is no table of system calls for a machine type."""


def program_filter(machine: str) -> bytes:
    """The filter of a program and of the process that forks its tests.

    `machine` is `os.uname().machine`. Forbids exec, sockets except pairs, new namespaces, System V and POSIX IPC,
    tracing, keys, and limits or priorities of other processes. Raises UnknownMachineError.
    """
    return _filter(
        machine,
        {
            "clone": _refuse_bits(0, _NAMESPACES),
            # Its flags are in memory, out of a filter's reach; the C library falls back to clone.
            "clone3": [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)],
            "prlimit64": _one_of(0, (0,)),  # its own limits only
            "ioctl": _one_of(1, _IOCTLS),
            "prctl": _one_of(0, (_SET_PARENT_DEATH_SIGNAL, *_PRCTLS)),
            "fcntl": _one_of(1, _FCNTLS),
            "socketpair": _one_of(0, (1,)),  # AF_UNIX: asyncio makes one
        },
        (),
    )


def single_process_filter(machine: str, *, files: bool, signals: bool) -> bytes:
    """A filter in addition to `program_filter` for a program that must stay a single process: threads, but no fork.

    Without a cgroup, memory is limited by RLIMIT_AS, which only holds for the whole program if it is one process and
    can't create memory files.

    Args:
      machine: `os.uname().machine`.
      files: whether the program may create files.
      signals: whether it may send signals to any process (within its namespace); otherwise only to the one whose id
        replaces `OWN_PID` when the filter is installed.

    Raises UnknownMachineError.
    """
    refused = ["memfd_create", "fork", "vfork", "utime", "utimes", "utimensat", "futimesat"]
    rules = {"clone": _require_bits(0, _THREAD)}
    if not files:
        refused += "creat mkdir mkdirat link linkat symlink symlinkat rename renameat renameat2 unlink unlinkat".split()
        refused += "rmdir truncate chmod fchmodat".split()
        writing = 0o1 | 0o2 | 0o100  # O_WRONLY, O_RDWR, O_CREAT
        rules |= {"open": _refuse_bits(1, writing), "openat": _refuse_bits(2, writing)}
    if not signals:
        refused += ["tkill", "pidfd_open"]
        rules |= {"kill": _one_of(0, (OWN_PID,)), "tgkill": _one_of(0, (OWN_PID,)), "prctl": _one_of(0, _PRCTLS)}
    return _filter(machine, rules, refused, default=_ALLOW)


def _filter(
    machine: str, rules: dict[str, _Code], refused: Sequence[str], default: int = _ERRNO | errno.EPERM
) -> bytes:
    """A filter that allows the table's calls, restricted by `rules` and `refused`; `default` applies to all others.

    If `default` is _ALLOW, only `rules` and `refused` restrict calls.
    """
    if machine not in _MACHINES:
        raise UnknownMachineError(f"no table of system calls for {machine}")
    architecture, column = _MACHINES[machine]
    numbers = {name: int(row[column]) for name, *row in map(str.split, _TABLE.split(";")) if row[column] != "-"}
    allow: _Code = [(_RETURN, 0, 0, _ALLOW)]
    refuse: _Code = [(_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    actions = {} if default == _ALLOW else dict.fromkeys(numbers.values(), allow)
    actions |= {numbers[name]: refuse for name in refused if name in numbers}
    actions |= {numbers[name]: code for name, code in rules.items() if name in numbers}
    body = _search(_ranges(actions, [(_RETURN, 0, 0, default)]))
    check_architecture: _Code = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    return b"".join(struct.pack("=HBBI", *i) for i in [*check_architecture, (_LOAD, 0, 0, 0), *body])


def _ranges(actions: dict[int, _Code], default: _Code) -> list[tuple[int, _Code]]:
    """(first number, action) of each range of calls with the same action, from 0 on."""
    starts: list[tuple[int, _Code]] = [(0, default)]
    for number in sorted(actions):
        for at, code in ((number, actions[number]), (number + 1, default)):
            if starts[-1][0] == at:
                starts.pop()
            if not starts or starts[-1][1] is not code:
                starts.append((at, code))
    return starts


def _search(starts: Sequence[tuple[int, _Code]]) -> _Code:
    """Code of a binary search for the range that contains the number in the accumulator."""
    if len(starts) == 1:
        return list(starts[0][1])
    middle = len(starts) // 2
    below, above = _search(starts[:middle]), _search(starts[middle:])
    if len(below) > 255:  # too far for a conditional jump, so combined with an unconditional one
        return [(_JUMP_AT_LEAST, 0, 1, starts[middle][0]), (0x05, 0, 0, len(below)), *below, *above]
    return [(_JUMP_AT_LEAST, len(below), 0, starts[middle][0]), *below, *above]


def _one_of(argument: int, values: Sequence[int]) -> _Code:
    """Allows the call if the argument's low word is one of `values`."""
    code: _Code = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]
    code += [(_JUMP_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [*code, (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]


def _refuse_bits(argument: int, bits: int) -> _Code:
    """Refuses the call if the argument has any of `bits`."""
    refused = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), (_JUMP_BITS, 0, 1, bits), refused, (_RETURN, 0, 0, _ALLOW)]


def _require_bits(argument: int, bits: int) -> _Code:
    """Refuses the call unless the argument has one of `bits`."""
    refused = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), (_JUMP_BITS, 1, 0, bits), refused, (_RETURN, 0, 0, _ALLOW)]
