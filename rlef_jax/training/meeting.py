"""The processes of a job find each other before JAX starts, so that what is wrong with their address is one line.

JAX's own start ends in C++ where the port is taken or the address is none, and waits for minutes where nobody answers.
So process 0 first listens at that address itself. The others connect, and when all are there each one gets a `go`:

    process 0 -> other   RLEF-JAX
    other -> process 0   RLEF-JAX <process> of <processes>
    process 0 -> other   go, or: no <reason>

A connection that ends tells each side that the other one has ended; what answers otherwise is some other program.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import selectors
import socket
import time
from typing import cast

from rlef_jax.errors import ConfigError, RunError

START_WAIT = "RLEF_JAX_START_WAIT_S"
NAME_WAIT = "RLEF_JAX_NAME_WAIT_S"
_DEFAULTS_S = {START_WAIT: 300.0, NAME_WAIT: 10.0}
_GREETING = b"RLEF-JAX\n"
_GREETING_S = 10.0  # process 0 greets at once
_LATE_S = 20.0  # after one has ended, for those who haven't come yet
_LONGEST = 512  # bytes of a line
_PAUSE_S = 0.2  # between two tries

_HOST = re.compile(r"\[(?P<six>[^\[\]]+)\]:(?P<port6>.*)|(?P<name>[^:\[\]]+):(?P<port>.*)")


def host_and_port(coordinator: str) -> tuple[str, int]:
    """The two parts of HOST:PORT or [IPV6]:PORT. Raises ConfigError for anything else."""
    match = _HOST.fullmatch(coordinator)
    port = (match["port6"] if match["six"] else match["port"]) if match else ""
    if match is None or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(
            f"--coordinator={coordinator!r} is not of the form HOST:PORT, with a port from 1 to 65535, such as"
            " node1:8476 or [::1]:8476"
        )
    return match["six"] or match["name"], int(port)


def meet(coordinator: str, processes: int, process: int) -> None:
    """Returns in every process once all of the job are there.

    Raises ConfigError for an address that is none, or whose name isn't known; RunError where its port is taken, another
    program answers, a process ends, or not all came within RLEF_JAX_START_WAIT_S (300) seconds.
    """
    host, port = host_and_port(coordinator)
    _look_up(host, port, _seconds(NAME_WAIT))
    deadline = time.monotonic() + _seconds(START_WAIT)
    if process == 0:
        _host(coordinator, port, processes, deadline)
    else:
        _visit(coordinator, (host, port), processes, process, deadline)


def _seconds(variable: str) -> float:
    text = os.environ.get(variable)
    try:
        seconds = float(text) if text else _DEFAULTS_S[variable]
    except ValueError as error:
        raise ConfigError(f"{variable} is a number of seconds, not {text!r}") from error
    if not 0 < seconds < 1e9:
        raise ConfigError(f"{variable} is a number of seconds above 0, not {text!r}")
    return seconds


def _look_up(host: str, port: int, seconds: float) -> None:
    """Waits until a name is known: where pods start together, its record may come after them."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > deadline or isinstance(error, UnicodeError):
                why = getattr(error, "strerror", None) or error
                raise ConfigError(
                    f"--coordinator: the name {host!r} is not known ({why}; tried for {seconds:g} s, {NAME_WAIT})"
                ) from error
        time.sleep(_PAUSE_S)


def _host(coordinator: str, port: int, processes: int, deadline: float) -> None:
    """Process 0: waits for the others, and tells them all to go on, or why not."""
    visitors: dict[int, socket.socket] = {}
    failure = ""
    with contextlib.ExitStack() as stack:
        with _listening(coordinator, port) as server, selectors.DefaultSelector() as ready:
            ready.register(server, selectors.EVENT_READ)
            while len(visitors) < processes - 1 and time.monotonic() < deadline:
                for key, _ in ready.select(max(deadline - time.monotonic(), 0)):
                    if key.fileobj is server:
                        visitor = stack.enter_context(server.accept()[0])
                        ready.register(visitor, selectors.EVENT_READ)
                        _send(visitor, _GREETING)
                        continue
                    visitor = cast(socket.socket, key.fileobj)
                    number = next((n for n, other in visitors.items() if other is visitor), None)
                    if number is None and _welcome(visitor, processes, visitors):
                        continue
                    ready.unregister(visitor)
                    if number is not None and not failure:  # those who come in the next seconds get it too
                        failure = f"process {number} of {processes} ended before the job at {coordinator} began"
                        deadline = min(deadline, time.monotonic() + _LATE_S)
        if not failure and len(visitors) < processes - 1:
            lacking = ", ".join(str(i) for i in range(1, processes) if i not in visitors)
            within = f"within {_seconds(START_WAIT):g} s ({START_WAIT})"
            failure = f"process {lacking} of {processes} did not come to {coordinator} {within}"
        for visitor in visitors.values():  # the port is free again: JAX needs it
            _send(visitor, f"no {failure}\n".encode() if failure else b"go\n")
    if failure:
        raise RunError(failure)


def _welcome(visitor: socket.socket, processes: int, visitors: dict[int, socket.socket]) -> bool:
    """Whether who has come is a process of this job, now one of the visitors.

    A process of another job gets the reason; a stranger, such as a cluster's probe, is disconnected.
    """
    match = re.fullmatch(rb"RLEF-JAX (\d+) of (\d+)\n", _heard(visitor))
    if match is None:
        visitor.close()
        return False
    number, count = int(match[1]), int(match[2])
    if count == processes and number not in visitors and 0 < number < processes:
        visitors[number] = visitor
        return True
    reason = f"has {processes} processes, not {count}" if count != processes else f"has a process {number} already"
    _send(visitor, f"no the job there {reason}\n".encode())
    visitor.close()
    return False


def _heard(visitor: socket.socket) -> bytes:
    with contextlib.suppress(OSError):
        return visitor.recv(_LONGEST)
    return b""


def _send(visitor: socket.socket, line: bytes) -> None:
    with contextlib.suppress(OSError):  # one that has ended is noticed where it is read
        visitor.settimeout(_GREETING_S)
        visitor.sendall(line)


def _listening(coordinator: str, port: int) -> socket.socket:
    """A server on all of this machine's addresses, as JAX's will be. Raises RunError where the port can't be had."""
    six = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if six else socket.AF_INET, dualstack_ipv6=six, backlog=4096
        )
    except OSError as error:
        why = "another program has the port" if error.errno == errno.EADDRINUSE else error.strerror
        raise RunError(f"--coordinator={coordinator}: process 0 can't listen there: {why}") from error


def _visit(coordinator: str, address: tuple[str, int], processes: int, process: int, deadline: float) -> None:
    """Another process: goes to process 0, and waits there for the rest."""
    with _connected(coordinator, address, deadline) as server:
        server.settimeout(_GREETING_S)
        greeting = _line(server, f"RLEF-JAX {process} of {processes}\n".encode())
        if greeting != _GREETING:
            raise RunError(f"--coordinator={coordinator}: another program than this job's process 0 answers there")
        server.settimeout(max(deadline - time.monotonic(), 0) + _GREETING_S)  # process 0 gives up first
        answer = _line(server)
    if answer.startswith(b"no "):
        reason = answer[3:].decode("ascii", "replace").strip()
        raise RunError(f"--coordinator={coordinator}: {reason}")
    if answer != b"go\n":
        raise RunError(f"process 0 of {processes}, at {coordinator}, ended before the job began")


def _connected(coordinator: str, address: tuple[str, int], deadline: float) -> socket.socket:
    while True:
        try:
            connection = socket.create_connection(
                address, timeout=max(min(deadline - time.monotonic(), _GREETING_S), 1.0)
            )
            if connection.getsockname() != connection.getpeername():  # where nobody listens, a socket may get to itself
                return connection
            connection.close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"--coordinator={coordinator}: no answer within {_seconds(START_WAIT):g} s ({START_WAIT}):"
                    f" {error.strerror or error}. Has process 0 started?"
                ) from error
        time.sleep(_PAUSE_S)


def _line(server: socket.socket, message: bytes = b"") -> bytes:
    """Sends `message` and reads a line: what came of it, if the connection or the time ended first."""
    received = b""
    with contextlib.suppress(OSError):
        server.sendall(message)
        while not received.endswith(b"\n") and len(received) < _LONGEST and (more := server.recv(1)):
            received += more
    return received
