"""A job's processes at their coordinator's address: real processes, real servers in the way, a line for each fault."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlef_jax.errors import ConfigError, RunError
from rlef_jax.training import meeting
from rlef_jax.training.meeting import host_and_port, meet

ROOT = Path(__file__).parents[2]
# What a command does before it trains, without what makes JAX slow to start.
PROGRAM = """
import os
from rlef_jax.command_line import errors_as_lines
from rlef_jax.training.processes import find_job, join
import jax
with errors_as_lines():
    join(find_job({}, os.environ))
    print("met", jax.process_index(), jax.process_count(), flush=True)
"""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def job(coordinator, processes=2, numbers=None, program=PROGRAM, **environment):
    """(exit code, stdout, stderr) of each process."""
    known = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "RLEF_JAX_COORDINATOR": coordinator,
                          "RLEF_JAX_PROCESSES": str(processes), **environment}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=known | {"RLEF_JAX_PROCESS": str(number)}, text=True, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in numbers or range(processes)
    ]  # fmt: skip
    return [(p.returncode, *told) for p in started for told in [p.communicate(timeout=120)]]


def one_line(ended, code, message):
    status, out, error = ended
    assert (status, out) == (code, "") and len(error.splitlines()) == 1, ended
    assert error.startswith("error: ") and message in error, error


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_a_job_meets_and_the_port_goes_to_jax(host):
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    ended = job(f"{host}:{free_port()}", processes=3 if host == "localhost" else 2)
    assert [(code, out) for code, out, _ in ended] == [(0, f"met {i} {len(ended)}\n") for i in range(len(ended))], ended


@pytest.fixture
def web_server():
    """`python -m http.server`, as somebody else's program on the port."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.05)
    yield port
    server.kill()
    server.wait()


def test_a_port_that_is_taken_ends_all_processes_with_a_line(web_server):
    first, second = job(f"127.0.0.1:{web_server}")
    one_line(first, 1, f"--coordinator=127.0.0.1:{web_server}: process 0 can't listen there: another program has")
    one_line(
        second, 1, f"--coordinator=127.0.0.1:{web_server}: another program than this job's process 0 answers there"
    )


def test_a_name_that_nobody_knows_ends_all_processes_with_a_line():
    for ended in job("no-such-host.invalid:8476", RLEF_JAX_NAME_WAIT_S="0.5"):
        one_line(ended, 2, "the name 'no-such-host.invalid' is not known (")


@pytest.mark.parametrize(
    "coordinator",
    ["localhost", "127.0.0.1:abc", "a:", ":1", "::1:8476", "[::1]", "a:0", "a:65536", "a:-1", "a:1:2", "[]:1"],
)
def test_an_address_that_is_none_is_refused(coordinator):
    with pytest.raises(ConfigError, match="not of the form HOST:PORT"):
        host_and_port(coordinator)


def test_addresses_have_two_parts():
    assert host_and_port("node1.cluster:8476") == ("node1.cluster", 8476)
    assert host_and_port("[fe80::1%eth0]:1") == ("fe80::1%eth0", 1)


def test_train_itself_refuses_an_address_before_anything_is_loaded(tmp_path):
    command = [sys.executable, "-m", "rlef_jax.train", "--config=configs/tiny.py", f"--workdir={tmp_path}/x",
               "--coordinator=localhost", "--processes=2", "--process=1"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    one_line((done.returncode, done.stdout, done.stderr), 2, "--coordinator='localhost' is not of the form HOST:PORT")
    assert not list(tmp_path.iterdir())


def test_where_nobody_answers_the_wait_is_the_configured_one():
    (alone,) = job(f"127.0.0.1:{free_port()}", numbers=[1], RLEF_JAX_START_WAIT_S="0.5")
    one_line(alone, 1, "no answer within 0.5 s (RLEF_JAX_START_WAIT_S): Connection refused. Has process 0 started?")
    (first,) = job(f"127.0.0.1:{free_port()}", processes=4, numbers=[0], RLEF_JAX_START_WAIT_S="0.5")
    one_line(first, 1, "process 1, 2, 3 of 4 did not come to 127.0.0.1:")


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_seconds_are_a_number(monkeypatch, text):
    monkeypatch.setenv(meeting.START_WAIT, text)
    with pytest.raises(ConfigError, match="RLEF_JAX_START_WAIT_S is a number of seconds"):
        meet("127.0.0.1:1", 2, 1)


def in_thread(*arguments):
    """A process's part in a thread of this one: what it raised, or None."""
    found = []

    def run():
        try:
            meet(*arguments)
            found.append(None)
        except (RunError, ConfigError) as error:
            found.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


def connected(port):
    """A connection to process 0, which may not listen yet."""
    while True:
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port))
        time.sleep(0.01)


def test_the_first_to_end_is_named_and_the_others_end_too():
    """Also one that comes later."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    first, told_first = in_thread(address, 3, 0)
    with connected(port) as third:
        assert third.recv(99) == b"RLEF-JAX\n"
        third.sendall(b"RLEF-JAX 2 of 3\n")
    second, told_second = in_thread(address, 3, 1)
    first.join()
    second.join()
    ended = f"process 2 of 3 ended before the job at {address} began"
    assert told_first == [ended] and told_second == [f"--coordinator={address}: {ended}"]


def test_the_others_end_with_process_0():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        thread, told = in_thread(address, 3, 1)
        with server.accept()[0] as visitor:
            visitor.sendall(b"RLEF-JAX\n")
            assert visitor.recv(99) == b"RLEF-JAX 1 of 3\n"
        thread.join()
    assert told == [f"process 0 of 3, at {address}, ended before the job began"]


def test_strangers_and_processes_of_other_jobs_do_not_count():
    port = free_port()
    address = f"127.0.0.1:{port}"
    first, told = in_thread(address, 3, 0)
    with connected(port) as probe:  # as a cluster's own
        probe.sendall(b"GET / HTTP/1.0\r\n\r\n")
    connected(port).close()
    one, told_one = in_thread(address, 3, 1)
    for count, number, reason in ((2, 1, b"has 3 processes, not 2"), (3, 0, b"a process 0 already")):
        with connected(port) as other:
            other.sendall(b"RLEF-JAX %d of %d\n" % (number, count))
            assert reason in other.makefile("rb").read().splitlines()[-1]
    two, told_two = in_thread(address, 3, 2)
    for thread in (first, one, two):
        thread.join()
    assert told == told_one == told_two == [None]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 400 Bad Request\r\n", b"\0\0\x12\x04\0\0\0\0\0", b"x" * 2000])
def test_whatever_else_answers_is_another_program(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread, told = in_thread(f"127.0.0.1:{port}", 2, 1)
        with server.accept()[0] as visitor:
            visitor.sendall(answer)
        thread.join()
    assert told == [f"--coordinator=127.0.0.1:{port}: another program than this job's process 0 answers there"]


def test_what_stays_silent_is_another_program(monkeypatch):
    monkeypatch.setattr(meeting, "_GREETING_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(RunError, match="another program than this job's process 0"):
            meet(f"127.0.0.1:{port}", 2, 1)
